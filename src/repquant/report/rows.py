"""One row of a record: a model, executed by a runtime, and what that gave."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import isfinite

from repquant.evaluate.accuracy import accuracy
from repquant.evaluate.compare import fidelity, paired_drop, parity
from repquant.evaluate.predictions import OutputDifference
from repquant.evaluate.stream import Evaluation


@dataclass(frozen=True, kw_only=True)
class Row:
    """Percentages run 0-100. None stands for what does not apply or was not measured.

    Attributes:
        calibrator: None for a float model.
        runtime: "pytorch" is the float module or the simulation.
        images: how many were evaluated.
        top1, top1_ci95, top5: accuracy and its Wilson interval; None without labels.
        drop, drop_ci95: points of top-1 lost against the float model, and their paired interval.
        agreement, kl: same top-1 as the float model; mean KL of the softmax to it, in nats.
        sqnr_db: of the logits, float model against this one; None too when they are equal.
        parity, max_logit_steps: same top-1 as the simulation, and the largest logit difference to it in steps of
            8-bit logits.
        logit_steps: images by their largest logit difference to it, in the bins of `evaluate.compare.STEP_EDGES`.
        seconds, images_per_second: inside the runtime, over all images, warm.
        file_bytes, model: the file that was executed, or that the simulation stands for.
        output: which output of the network, where it has several.
        metric, metric_drop: a figure of merit that the user gave, and what is lost of it against the float model.
        latency_ms, latency_ratio, latency_ratio_ci95: median of a batch of one image, how many times as long that is as
            the float file in the same runtime takes, and the 95 % interval of the ratio.
    """

    runtime: str
    runtime_version: str
    images: int
    seconds: float
    images_per_second: float | None
    calibrator: str | None = None
    top1: float | None = None
    top1_ci95: tuple[float, float] | None = None
    top5: float | None = None
    drop: float | None = None
    drop_ci95: tuple[float, float] | None = None
    agreement: float | None = None
    kl: float | None = None
    sqnr_db: float | None = None
    parity: float | None = None
    max_logit_steps: float | None = None
    logit_steps: tuple[int, ...] | None = None
    file_bytes: int | None = None
    model: str | None = None
    output: str | None = None
    metric: float | None = None
    metric_drop: float | None = None
    latency_ms: float | None = None
    latency_ratio: float | None = None
    latency_ratio_ci95: tuple[float, float] | None = None


def measured_row(
    evaluation: Evaluation,
    name: str,
    *,
    runtime: str,
    runtime_version: str,
    calibrator: str | None = None,
    float_name: str | None = None,
    simulation_name: str | None = None,
    model: str | None = None,
    file_bytes: int | None = None,
) -> Row:
    """Read the row of the runtime `name` out of an evaluation.

    Args:
        evaluation: must hold the pairs (name, float_name) and (name, simulation_name) where these are given.
        name: the runtime's name in the evaluation.
        runtime, runtime_version, calibrator, model, file_bytes: as in `Row`.
        float_name: the float model in the evaluation, for drop and fidelity.
        simulation_name: the simulation in the evaluation, for parity.
    """
    predictions, seconds = evaluation.predictions.get(name), evaluation.seconds[name]
    row = Row(
        runtime=runtime,
        runtime_version=runtime_version,
        images=evaluation.images,
        seconds=seconds,
        images_per_second=evaluation.images / seconds if seconds > 0 else None,
        calibrator=calibrator,
        file_bytes=file_bytes,
        model=model,
    )
    if predictions is not None and (measured := accuracy(predictions)) is not None:
        row = replace(row, top1=measured.top1, top1_ci95=measured.top1_ci95, top5=measured.top5)
    to_float = None if float_name is None else evaluation.differences[name, float_name]
    to_simulation = None if simulation_name is None else evaluation.differences[name, simulation_name]
    row = _compared(row, to_float, to_simulation)
    float_predictions = evaluation.predictions.get(float_name) if float_name is not None else None
    if predictions is not None and float_predictions is not None:
        correct, float_correct = predictions.correct, float_predictions.correct
        if correct is not None and float_correct is not None:
            drop = paired_drop(float_correct, correct)
            row = replace(row, drop=drop.points, drop_ci95=drop.ci95)
    return row


def output_rows(
    evaluation: Evaluation,
    first: Row,
    name: str,
    float_name: str,
    simulation_name: str | None,
    outputs: Sequence[str],
) -> Iterator[Row]:
    """Yield the rows of a network's outputs behind the first one.

    Args:
        evaluation: must hold the pairs (name, float_name) and (name, simulation_name).
        first: row of the first output.
        name: the runtime's name in the evaluation.
        float_name: the float model in the evaluation.
        simulation_name: the simulation in the evaluation; None for the simulation itself.
        outputs: names of these outputs.
    """
    bare = Row(
        runtime=first.runtime,
        runtime_version=first.runtime_version,
        images=first.images,
        seconds=first.seconds,
        images_per_second=first.images_per_second,
        calibrator=first.calibrator,
        file_bytes=first.file_bytes,
    )
    for position, output in enumerate(outputs):
        to_simulation = None if simulation_name is None else evaluation.others[name, simulation_name][position]
        yield _compared(replace(bare, output=output), evaluation.others[name, float_name][position], to_simulation)


def _compared(row: Row, to_float: OutputDifference | None, to_simulation: OutputDifference | None) -> Row:
    if to_float is not None:
        close = fidelity(to_float)
        row = replace(row, agreement=close.agreement, kl=close.kl, sqnr_db=_finite(close.sqnr_db))
    if to_simulation is not None:
        same = parity(to_simulation)
        row = replace(
            row,
            parity=same.same_top1,
            max_logit_steps=_finite(same.max_logit_steps),
            logit_steps=same.step_counts,
        )
    return row


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None
