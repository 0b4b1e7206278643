"""The steps of post-training quantization with progress shown and time taken."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from repquant.cli.console import progress, say
from repquant.cli.options import MixedPrecisionOptions

if TYPE_CHECKING:
    from torch import Tensor, fx

    from repquant.cli.inputs import Calibration
    from repquant.data.loading import Loader
    from repquant.graph.plan import Plan
    from repquant.methods.method import PtqMethod
    from repquant.methods.rounded import Rounded
    from repquant.quantize import Calibrated
    from repquant.targets.target import Target


@dataclass(frozen=True)
class ImagesOf:
    """The images of a loader without labels, as often as they are asked for."""

    loader: Loader

    def __iter__(self) -> Iterator[Tensor]:
        """Yield (N, 3, H, W) for each batch."""
        return (batch.images for batch in self.loader)


@dataclass(frozen=True)
class Timed:
    """A network that is ready to be rounded, and the seconds that this took."""

    calibrated: Calibrated
    prepare_seconds: float
    collect_seconds: float

    @property
    def seconds(self) -> float:
        """Of both."""
        return self.prepare_seconds + self.collect_seconds


def open_average_bits(options: MixedPrecisionOptions, target: Target) -> float | None:
    """Return the average that bits of weights hold to; None where all layers have those of the target.

    Raises:
        InputError: the layers can't hold to it.
    """
    from repquant.methods.mixed_precision import check_average_bits

    if options.average_bits == 0:
        return None
    check_average_bits(options.average_bits, target)
    return options.average_bits


def calibrate(
    graph: fx.GraphModule,
    method: PtqMethod,
    target: Target,
    calibration: Calibration,
    kept: Collection[str],
    average_bits: float | None = None,
) -> Timed:
    """Prepare the network for its target and collect the histograms that every calibrator reads.

    Where images are outliers, this is done again without them.
    """
    from repquant.graph.batches import WithoutImages
    from repquant.methods.identity import count_identities
    from repquant.methods.mixed_precision import preparing_target
    from repquant.methods.outlying_images import describe

    if method.identity != "fused" and count_identities(graph) == 0:
        say("no layer has room for an identity branch: there is nothing to set apart")
    images, scaled_for = ImagesOf(calibration.ranges), preparing_target(target, average_bits)
    timed = _calibrate_once(graph, method, target, images, calibration.ranges.images, kept, scaled_for)
    if not (outliers := timed.calibrated.outliers):
        return timed
    say(describe([example.name for example in calibration.ranges.examples(outliers)]))
    left, count = WithoutImages(images, frozenset(outliers)), calibration.ranges.images - len(outliers)
    again = _calibrate_once(graph, method, target, left, count, kept, scaled_for)
    return Timed(
        replace(again.calibrated, outliers=outliers),
        timed.prepare_seconds + again.prepare_seconds,
        timed.collect_seconds + again.collect_seconds,
    )


def _calibrate_once(
    graph: fx.GraphModule,
    method: PtqMethod,
    target: Target,
    images: Iterable[Tensor],
    count: int,
    kept: Collection[str],
    scaled_for: Target,
) -> Timed:
    from repquant.methods.equalize import NOISE_IMAGES
    from repquant.methods.ptq import prepare
    from repquant.quantize import collect

    started = perf_counter()
    with progress("scale channels", min(count, NOISE_IMAGES) if method.equalization == "noise" else 0) as advance:
        prepared = prepare(graph, method, scaled_for, images, kept, advance)
    middle = perf_counter()
    with progress("calibrate", count) as advance:
        calibrated = collect(prepared, images, target, method, kept, advance)
    return Timed(calibrated, middle - started, perf_counter() - middle)


def plan_for(calibrated: Calibrated, calibrator: str, percentile: float, images: int) -> Plan:
    """Return the plan with the ranges that a calibrator finds; `images` were calibrated on."""
    from repquant.choices import LOSS_AWARE
    from repquant.methods.loss_aware import IMAGES

    if calibrator != LOSS_AWARE:
        return calibrated.plan(calibrator, percentile=percentile)
    with progress("choose ranges", min(images, IMAGES)) as advance:
        return calibrated.plan(calibrator, percentile=percentile, on_batch=advance)


def with_average_bits(
    calibrated: Calibrated, plans: Mapping[str, Plan], calibration: Calibration, average_bits: float
) -> dict[str, Plan]:
    """Return the plans of all calibrators with the bits of each layer's weights.

    They are chosen once: activations stay in float while the weights of a layer are looked at, so the ranges of a
    calibrator make no difference.
    """
    from repquant.methods.mixed_precision import SENSITIVITY_IMAGES

    first = next(iter(plans.values()))
    with progress("choose bits", min(calibration.ranges.images, SENSITIVITY_IMAGES)) as advance:
        bits = calibrated.with_average_bits(first, average_bits, calibrated.batches, advance).weight_bits
    return {name: replace(plan, weight_bits=bits) for name, plan in plans.items()}


def check_checkpoints(
    calibrated: Calibrated, plans: Mapping[str, Plan], rounding: Loader, checkpoints: Mapping[str, Path]
) -> None:
    """Refuse a checkpoint of another run before anything is learned, of whichever calibrator it is.

    Args:
        calibrated: the network.
        plans: of each calibrator.
        rounding: the images that rounding is learned on.
        checkpoints: files of the calibrators; they need not exist.

    Raises:
        InputError: a file is damaged, or was written for other arguments.
    """
    from repquant.methods.ptq import check_rounding_checkpoint

    for calibrator, path in checkpoints.items():
        if path.exists():
            images = rounding_images(calibrated, rounding)
            check_rounding_checkpoint(calibrated.graph, plans[calibrator], calibrated.method, images, path)


def round_network(
    calibrated: Calibrated, plan: Plan, calibration: Calibration, name: str = "", checkpoint: Path | None = None
) -> Rounded:
    """Round a prepared network; `name` tells one calibrator from another on the screen.

    `checkpoint` is for learned rounding: a run that is interrupted goes on from there.
    """
    from repquant.methods.ptq import progress_total

    loader = calibration.rounding
    if loader is None:
        return calibrated.round(plan, ())
    images = loader.images - sum(place < loader.images for place in calibrated.outliers)
    with progress(f"round {name}".strip(), progress_total(plan, calibrated.method, images)) as advance:
        return calibrated.round(plan, rounding_images(calibrated, loader), advance, checkpoint)


def rounding_images(calibrated: Calibrated, rounding: Loader) -> Iterable[Tensor]:
    """Return the batches that weights are rounded for: the first ones that were calibrated on, without outliers."""
    from repquant.graph.batches import WithoutImages

    return WithoutImages(ImagesOf(rounding), frozenset(calibrated.outliers))
