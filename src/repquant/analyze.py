"""Where the loss of a network in integers comes from, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

from torch import nn

from repquant.choices import Calibrator
from repquant.graph.batches import first_images, rereadable
from repquant.graph.devices import device_of, full_precision
from repquant.graph.run import Batch
from repquant.methods.default_calibrator import default_calibrator
from repquant.methods.method import PtqMethod
from repquant.methods.sensitivity import Sensitivity, measure_sensitivity
from repquant.quantize import calibrate, captured, served_here
from repquant.targets.target import Target

AS_IT_IS = PtqMethod(equalization="none", rounding="nearest")
"""The method of other tools, but for corrected biases: what there is to gain shows."""


def analyze(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    target: str | Target = "onnxruntime",
    images: Iterable[Batch] | None = None,
    calibrator: Calibrator | None = None,
    method: PtqMethod = AS_IT_IS,
    keep_float: Collection[str] = (),
    rounding_images: int = 256,
    example: Any = None,
    on_batch: Callable[[int], None] = lambda _: None,
) -> Sensitivity:
    """Return what each layer and operator loses when it alone is in integers, or everything but it.

    Args:
        model: as for `quantize`.
        batches: as for `quantize`.
        target: as for `quantize`.
        images: batches to compare on; the ones that were calibrated on by default.
        calibrator: as for `quantize`.
        method: as for `quantize`; by default without scaled channels, and with weights rounded to the nearest.
        keep_float: as for `quantize`.
        rounding_images: as for `quantize`.
        example: as for `quantize`.
        on_batch: called with the number of images after each batch that was compared on.

    Raises:
        InputError: as `quantize`.
        FloatingPointError: an output is NaN or infinite where that of the float network is not.
    """
    batches = rereadable(batches)
    graph, schemes = captured(model, batches, example), served_here(target)
    with full_precision(device_of(graph)):
        calibrated = calibrate(graph, method, schemes, batches, keep_float)
        plan = calibrated.plan(calibrator or default_calibrator(graph, schemes))
        rounded = calibrated.round(plan, first_images(calibrated.batches, rounding_images))
        compared_on = calibrated.batches if images is None else images
        return measure_sensitivity(calibrated.graph, rounded, compared_on, on_batch)
