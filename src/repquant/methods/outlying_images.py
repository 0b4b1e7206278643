"""Calibration images that set a network off: values many times those of other images, in most of its tensors.

One such image in a hundred takes the grids for itself: ranges, the noise model and the moments that weights are rounded
for follow the largest values. A half-trained RepViT lost a quarter of its answers to 5 images of 512 (docs/log.md).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, fx

from repquant.graph.layout import Layout
from repquant.graph.run import Batch, observe

TIMES = 4.0
"""So many times the largest value of the median image, in the median tensor, make an image an outlier."""

SHARE = 0.05
"""Of the images that may be outliers; where there are more, they are what the network meets."""

FEWEST = 16
"""Images that a median needs."""

_NAMED = 8


@dataclass
class ImageMagnitudes:
    """The largest magnitude of each row of a tensor, in parts, one from each batch."""

    parts: list[Tensor] = field(default_factory=list)

    def update(self, x: Tensor) -> tuple[float, float]:
        """Take in the values of a batch, (N, ...), and return the smallest and the largest of them."""
        rows = x.detach().reshape(len(x) if x.ndim else 1, -1)
        low, high = rows.amin(1), rows.amax(1)  # aminmax over a dimension takes five times as long (torch 2.13)
        self.parts.append(torch.maximum(high, -low).cpu())
        return float(low.min()), float(high.max())

    def of_images(self, sizes: Sequence[int]) -> Tensor | None:
        """Return the magnitudes (images,) of batches of these sizes; None where a row is not an image."""
        return torch.cat(self.parts) if [len(part) for part in self.parts] == list(sizes) else None


def outlying_images(magnitudes: Mapping[str, ImageMagnitudes], sizes: Sequence[int]) -> tuple[int, ...]:
    """Return the places of the outliers among the images, in order; none where more than `SHARE` of them would be.

    Args:
        magnitudes: of each tensor that will be rounded.
        sizes: images in each batch.
    """
    images = sum(sizes)
    if images < FEWEST:
        return ()
    known = [values for each in magnitudes.values() if (values := each.of_images(sizes)) is not None]
    medians = [values.median() for values in known]
    ratios = [values / median for values, median in zip(known, medians, strict=True) if median > 0]
    if not ratios:
        return ()
    found = torch.nonzero(torch.stack(ratios).median(0).values > TIMES).flatten().tolist()
    return tuple(found) if len(found) <= SHARE * images else ()


@torch.inference_mode()
def find_outlying_images(graph: fx.GraphModule, layout: Layout, batches: Iterable[Batch]) -> tuple[int, ...]:
    """Return the places of the outliers among the images of the batches, by one pass of the float network.

    Raises:
        InputError: no batch came, or one does not fit the network.
    """
    magnitudes = {source: ImageMagnitudes() for tensor in layout.tensors.values() for source in tensor.sources}
    observers = {name: partial(_take, each) for name, each in magnitudes.items()}
    sizes: list[int] = []
    observe(graph, batches, observers, sizes.append)
    return outlying_images(magnitudes, sizes)


def _take(magnitudes: ImageMagnitudes, value: Tensor) -> None:
    if value.numel():
        magnitudes.update(value)


def describe(outliers: Sequence[object]) -> str:
    """Return a sentence about the images that were left out, by their places or names."""
    named = ", ".join(map(str, outliers[:_NAMED])) + (f" and {len(outliers) - _NAMED} more" * (len(outliers) > _NAMED))
    return (
        f"{len(outliers)} of the calibration images set the network off, with values at least {TIMES:g} times those of "
        f"others in half of its tensors, and were left out: {named}"
    )
