"""One pass over the calibration images collects what every calibrator reads."""

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from repquant.errors import InputError
from repquant.numerics.histogram import Histogram
from repquant.numerics.ranges import search_range
from repquant.quant.convert import Range, quantization_points
from repquant.targets.target import Target


@torch.inference_mode()
def collect_histograms(
    model: nn.Module,
    batches: Iterable[Tensor],
    keep_float: Collection[str] = (),
    on_batch: Callable[[int], None] = lambda _: None,
) -> dict[str, Histogram]:
    """Run the float model over the images and return a histogram of each quantization point's input.

    Args:
        model: deploy model in evaluation mode.
        batches: images (N, 3, H, W) each.
        keep_float: layers that will stay in float.
        on_batch: called with the number of images after each batch.

    Raises:
        InputError: no batch came, or an activation is not finite (the layer is named).
    """
    histograms = {name: Histogram() for name in quantization_points(model, keep_float)}
    images = 0
    with ExitStack() as hooks:
        for name, module in quantization_points(model, keep_float).items():
            handle = module.register_forward_pre_hook(_recorder(name, histograms[name]))
            hooks.callback(handle.remove)
        for batch in batches:
            model(batch)
            images += len(batch)
            on_batch(len(batch))
    if images == 0:
        raise InputError("there are no calibration images; give a folder that holds some")
    return histograms


def activation_ranges(
    calibrator: str, histograms: Mapping[str, Histogram], target: Target, *, percentile: float = 99.99
) -> dict[str, Range]:
    """Return the range that a calibrator finds for each histogram on the target's activation grid."""
    return {
        name: search_range(calibrator, histogram, target.activation, percentile=percentile)
        for name, histogram in histograms.items()
    }


def _recorder(name: str, histogram: Histogram) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def record(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        try:
            histogram.update(inputs[0])
        except InputError as error:
            raise InputError(f"input of layer {name}: {error}") from error

    return record
