"""What people calibrate with: any iterable of batches, read as often as a method needs it."""

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from repquant.errors import InputError
from repquant.graph.interface import captured_of
from repquant.graph.run import Batch


def rereadable(batches: Iterable[Batch]) -> Iterable[Batch]:
    """Return batches that can be read several times: an iterator, which can't, is kept in memory.

    Raises:
        InputError: no batches, or a tensor in place of batches.
    """
    if isinstance(batches, Tensor | str | Mapping) or not isinstance(batches, Iterable):
        raise InputError(
            f"batches is a {type(batches).__name__}; give an iterable of batches, for example a DataLoader or [images]"
        )
    return list(batches) if isinstance(batches, Iterator) else batches


def example_of(module: nn.Module, batches: Iterable[Batch]) -> Any:
    """Return the inputs of the first batch, as `capture` takes them.

    Of a tuple or list as many parts are inputs as `forward` needs; what follows, such as labels, is left out.

    Raises:
        InputError: there is no batch.
    """
    for batch in batches:
        if isinstance(batch, Tensor):
            return batch
        if isinstance(batch, Mapping):
            return dict(batch)
        return tuple(batch[: _needed(module)])
    raise InputError("there are no calibration images; give at least one batch")


def first_images(batches: Iterable[Batch], count: int) -> Iterator[Batch]:
    """Yield whole batches until `count` images are reached."""
    seen = 0
    for batch in batches:
        if seen >= count:
            return
        yield batch
        seen += _size(batch)


def single_images(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield the inputs of one image after the other, copied; all at once where the network takes no other batch.

    An input whose first dimension is not that of the images is there each time, as a whole.
    """
    if not captured_of(graph).dynamic_batch:
        yield [tensor.detach().clone() for tensor in inputs]
        return
    shapes = [node.meta["val"].shape for node in graph.graph.nodes if node.op == "placeholder"]
    # Sizes that are not known are compared by name: those of the example may be the same by chance.
    are_images = [len(shape) > 0 and str(shape[0]) == str(shapes[0][0]) for shape in shapes]
    for place in range(len(inputs[0])):
        yield [
            (tensor[place : place + 1] if is_image else tensor).detach().clone()
            for tensor, is_image in zip(inputs, are_images, strict=True)
        ]


def come_in_order(batches: Iterable[Batch]) -> bool:
    """Whether the first batch is the same when it is read again: shuffled or augmented images have no places."""
    one, other = (_first_tensor(next(iter(batches))) for _ in range(2))
    return torch.equal(one, other)


@dataclass(frozen=True)
class WithoutImages:
    """Batches without some of their images, as often as they are read.

    Attributes:
        batches: that can be read several times, in the same order.
        left_out: places of the images, counted over all batches.
    """

    batches: Iterable[Batch]
    left_out: frozenset[int]

    def __iter__(self) -> Iterator[Batch]:
        """Yield what is left of each batch; those of which nothing is are not there."""
        begin = 0
        for batch in self.batches:
            count = _size(batch)
            kept = [place for place in range(count) if begin + place not in self.left_out]
            begin += count
            if len(kept) == count:
                yield batch
            elif kept:
                yield _select(dict(batch) if isinstance(batch, Mapping) else batch, count, kept)


def _select(batch: Batch, count: int, places: list[int]) -> Batch:
    """Return the images of a batch at some places, with labels that are tensors."""
    return pytree.tree_map_only(Tensor, lambda x: x[places] if x.ndim and len(x) == count else x, batch)


def _size(batch: Batch) -> int:
    return len(_first_tensor(batch))


def _first_tensor(batch: Batch) -> Tensor:
    leaves = pytree.tree_leaves(dict(batch) if isinstance(batch, Mapping) else batch)
    return next(leaf for leaf in leaves if isinstance(leaf, Tensor))


def _needed(module: nn.Module) -> int:
    parameters = inspect.signature(module.forward).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [p for p in parameters if p.kind in positional and p.default is inspect.Parameter.empty]
    return max(1, len(required))
