"""The record of a run that quantized: what all such verbs put into it, and what is said of it at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from repquant.cli.console import say, show

if TYPE_CHECKING:
    from torch import fx

    from repquant.cli.inputs import Calibration
    from repquant.cli.options import ModelOptions
    from repquant.cli.proof import Proof
    from repquant.data.loading import Loader
    from repquant.graph.plan import Plan
    from repquant.quantize import Calibrated
    from repquant.report.record import AttemptRecord, Record
    from repquant.targets.target import Target


_NAMED_LAYERS = 12  # of those with other bits than most layers


def record_of(
    command: str,
    options: ModelOptions,
    config: dict[str, Any],
    proof: Proof,
    *,
    target: Target,
    output: str,
    calibration: Calibration,
    evaluation: Loader,
    skipped: Mapping[str, str],
    weight_bits: Mapping[str, int] = MappingProxyType({}),
    notes: Sequence[str] = (),
    trail: Sequence[AttemptRecord] = (),
    calibration_seconds: float | None = None,
    work_seconds: float | None = None,
) -> Record:
    """Return the record of a proof.

    Args:
        command: the verb.
        options: the network.
        config: the resolved configuration.
        proof: what was measured.
        target: of the quantized models.
        output: the folder, as it was given.
        calibration: the images that were calibrated on.
        evaluation: the images that were measured on.
        skipped: unreadable images -> the reason.
        weight_bits: layer -> bits of its weights, where layers differ.
        notes: the verb's own sentences; those of the target, of this CPU and of a float model at chance follow.
        trail: what a search tried, in order.
        calibration_seconds: the pass over the calibration images.
        work_seconds: to make the models out of the float one.
    """
    from repquant.cli.inputs import hashed_weights, saturation_notes
    from repquant.report.record import Record

    ran = {row.runtime for row in proof.rows}
    record = Record(
        command=command,
        output=output,
        config=config,
        inputs=hashed_weights(options),
        environment=proof.environment,
        calibration=calibration.record(calibration_seconds),
        notes=tuple(note for note in (*notes, target.note, *saturation_notes(target, tuple(ran))) if note),
        skipped=dict(skipped),
        weight_bits=dict(weight_bits),
        float_row=proof.float_row,
        results=proof.rows,
        disagreements=proof.disagreements,
        trail=tuple(trail),
        work_seconds=work_seconds,
    )
    return replace(record, notes=record.notes + chance_notes(record, evaluation.classes))


def bits_notes(graph: fx.GraphModule, plan: Plan) -> tuple[str, ...]:
    """Return a sentence that says which layers have how many bits; nothing where all have the same ones."""
    from repquant.methods.mixed_precision import mean_bits

    by_bits: dict[int, list[str]] = {}
    for name, bits in plan.weight_bits.items():
        by_bits.setdefault(bits, []).append(name)
    if not by_bits:
        return ()
    *others, (most, layers) = sorted(by_bits.items(), key=lambda group: len(group[1]))
    named = [f"{bits} bits in {_named(names)}" for bits, names in others]
    groups = "; ".join([*named, f"{most} bits in {'the other ' if named else 'all '}{len(layers)} layers"])
    return (f"weights have {mean_bits(graph, plan):.3f} bits on average: {groups}",)


def outlier_notes(calibrated: Calibrated, calibration: Calibration) -> tuple[str, ...]:
    """Return a sentence about calibration images that were left out; nothing where none was."""
    from repquant.methods.outlying_images import describe

    if not calibrated.outliers:
        return ()
    return (describe([example.name for example in calibration.ranges.examples(calibrated.outliers)]),)


def _named(names: Sequence[str]) -> str:
    rest = len(names) - _NAMED_LAYERS
    return ", ".join(names[:_NAMED_LAYERS]) + (f" and {rest} more layers, see result.json" if rest > 0 else "")


def tell(record: Record, already_said: int = 0) -> None:
    """Show the table of a record, its notes but for the first `already_said`, and how many images were left out."""
    from repquant.report.tables import comparison, screen_table

    show(screen_table(record, comparison(record)))
    for note in record.notes[already_said:]:
        say(note)
    if record.skipped:
        say(f"{len(record.skipped)} unreadable images were left out; result.json names them")


def choice(record: Record) -> str:
    """Return the sentence that names the file to take: the one that the report page is about."""
    from repquant.report.verdict import served_row

    best = served_row(record)
    assert best is not None, "a run that quantized has rows of what it made"
    where = "in the simulation" if best.runtime == "pytorch" else f"in {best.runtime}"
    if best.model is None:
        return f"nothing was exported; {best.calibrator} is nearest to float {where}"
    lost = ""
    if best.drop is not None and best.drop_ci95 is not None:
        low, high = best.drop_ci95
        within = " (which is within noise)" if low <= 0 <= high else ""
        lost = f", top-1 {best.top1:.2f} %, {best.drop:.2f} points below float{within}"
    same = f"the same class as float on {best.agreement:.2f} % of the images"
    return f"take {best.model}: {where} {same}{lost}"


def hardly_better_than_chance(top1: float, classes: Sequence[str] | None) -> str:
    """Return a warning where a float model is hardly better than chance, and "" elsewhere.

    Something that it is given is not what it expects. Hardly better is less than a tenth of the way from chance to
    100 %.
    """
    chance = 100 / len(classes) if classes else 0.0
    if not classes or top1 >= chance + (100 - chance) / 10:
        return ""
    return (
        f"warning: top-1 in float is {top1:.2f} %, and chance {chance:.2f} %: are --image-size, --crop-ratio, --mean "
        "and --std those that the model was trained with, and the classes in its order?"
    )


def chance_notes(record: Record, classes: Sequence[str] | None) -> tuple[str, ...]:
    """Return the warning of `hardly_better_than_chance` for the float model of a record, where it is needed."""
    top1 = None if record.float_row is None else record.float_row.top1
    warning = "" if top1 is None else hardly_better_than_chance(top1, classes)
    return (warning,) if warning else ()
