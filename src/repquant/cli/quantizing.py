"""The steps of post-training quantization with progress shown and time taken."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from repquant.cli.console import progress, say

if TYPE_CHECKING:
    from repquant.cli.inputs import Calibration
    from repquant.data.loading import Loader
    from repquant.models.network import RepVGG
    from repquant.numerics.histogram import Histogram
    from repquant.quant.convert import Range
    from repquant.quant.ptq import PtqMethod
    from repquant.quant.rounded import Rounded
    from repquant.targets.target import Target


@dataclass(frozen=True)
class Calibrated:
    """A prepared float model, the histograms of its activations, and the seconds that the two took."""

    model: RepVGG
    histograms: Mapping[str, Histogram]
    prepare_seconds: float
    collect_seconds: float

    @property
    def seconds(self) -> float:
        """Of both."""
        return self.prepare_seconds + self.collect_seconds


def calibrate(
    model: RepVGG, method: PtqMethod, target: Target, calibration: Calibration, kept: Collection[str]
) -> Calibrated:
    """Prepare the model for its target and collect the histograms that every calibrator reads."""
    from repquant.models.shortcut import count_identities
    from repquant.quant.calibrate import collect_histograms
    from repquant.quant.ptq import prepare

    if method.identity != "fused" and count_identities(model) == 0:
        say("no block has an identity branch: there is nothing to set apart")
    started = perf_counter()
    with progress("scale channels", calibration.ranges.images) as advance:
        model = prepare(model, method, target, (batch.images for batch in calibration.ranges), advance)
        if method.equalization != "noise":
            advance(calibration.ranges.images)  # it needed none
    prepared = perf_counter()
    with progress("calibrate", calibration.ranges.images) as advance:
        images = (batch.images for batch in calibration.ranges)
        histograms = collect_histograms(model, images, kept, on_batch=advance)
    return Calibrated(model, histograms, prepared - started, perf_counter() - prepared)


def check_checkpoints(
    model: RepVGG,
    ranges: Mapping[str, Mapping[str, Range]],
    target: Target,
    method: PtqMethod,
    rounding: Loader,
    kept: Collection[str],
    checkpoints: Mapping[str, Path],
) -> None:
    """Refuse a checkpoint of another run before anything is learned, of whichever calibrator it is.

    Args:
        model: from `calibrate`.
        ranges: of each calibrator.
        target, method, kept: as for `quantize`.
        rounding: the images that rounding is learned on.
        checkpoints: files of the calibrators; they need not exist.

    Raises:
        InputError: a file is damaged, or was written for other arguments.
    """
    import torch

    from repquant.quant.ptq import check_rounding_checkpoint

    existing = {calibrator: path for calibrator, path in checkpoints.items() if path.exists()}
    if existing:
        images = torch.cat([batch.images for batch in rounding])
        for calibrator, path in existing.items():
            check_rounding_checkpoint(model, ranges[calibrator], target, method, images, kept, path)


def quantize(
    model: RepVGG,
    ranges: Mapping[str, Range],
    target: Target,
    method: PtqMethod,
    calibration: Calibration,
    kept: Collection[str],
    name: str = "",
    checkpoint: Path | None = None,
) -> RepVGG:
    """Return the quantized form of a prepared model; the arguments are those of `round_model`."""
    return round_model(model, ranges, target, method, calibration, kept, name, checkpoint).quantized(
        ranges, target, kept
    )


def round_model(
    model: RepVGG,
    ranges: Mapping[str, Range],
    target: Target,
    method: PtqMethod,
    calibration: Calibration,
    kept: Collection[str],
    name: str = "",
    checkpoint: Path | None = None,
) -> Rounded[RepVGG]:
    """Round a prepared model; `name` tells one calibrator from another on the screen.

    `checkpoint` is for learned rounding: a run that is interrupted goes on from there.
    """
    from repquant.quant import ptq

    loader = calibration.rounding
    if loader is None:
        return ptq.round_model(model, ranges, target, method, (), kept)
    total = ptq.progress_total(model, method, loader.images, kept)
    with progress(f"round {name}".strip(), total) as advance:
        images = (batch.images for batch in loader)
        return ptq.round_model(model, ranges, target, method, images, kept, advance, checkpoint)
