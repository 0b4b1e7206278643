"""The proof of a quantized model: exported, run by each runtime, compared with float and with its simulation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from repquant.cli.console import progress, say, show

if TYPE_CHECKING:
    from torch import fx

    from repquant.cli.inputs import Calibration
    from repquant.data.loading import Loader
    from repquant.report.record import DisagreementRecord, Record
    from repquant.report.rows import Row
    from repquant.runtimes.interface import Runtime
    from repquant.targets.target import Target

FLOAT = "float"

_DISAGREEMENTS = 8  # of each quantized model, for the record


@dataclass(frozen=True)
class Proof:
    """The float row, one row for each quantized model and runtime, and the images that float and INT8 see otherwise."""

    float_row: Row
    rows: tuple[Row, ...]
    disagreements: tuple[DisagreementRecord, ...]


def tell(record: Record, already_said: int = 0) -> None:
    """Show the table of a record, its notes but for the first `already_said`, and how many images were left out."""
    from repquant.report.tables import COMPARISON, screen_table

    show(screen_table(record, COMPARISON))
    for note in record.notes[already_said:]:
        say(note)
    if record.skipped:
        say(f"{len(record.skipped)} unreadable images were left out; result.json names them")


def prove(
    float_graph: fx.GraphModule,
    quantized: Mapping[str, fx.GraphModule],
    loader: Loader,
    calibration: Calibration,
    runtimes: Sequence[str],
    folder: Path,
    shown_folder: Path,
    target: Target,
) -> Proof:
    """Export every model into `folder`, run it in every runtime on the same images, and return the rows.

    Args:
        float_graph: captured.
        quantized: name (of the calibrator or method) -> simulated network.
        loader: evaluation images.
        calibration: images that were calibrated on; the first ones are written beside the models as pictures, with
            those of the evaluation on which models disagree.
        runtimes: names; the simulation always runs, as the reference of parity, and has a row where `pytorch` is named.
        folder: existing folder that the files are written to.
        shown_folder: the folder's final name, for the record.
        target: of the quantized models. Activations of fewer than 8 bits can't be exported; `runtimes` is then pytorch
            alone.
    """
    from repquant.check import require_taken
    from repquant.evaluate.disagreement import largest_disagreements
    from repquant.evaluate.stream import Pair, evaluate
    from repquant.export.onnx import INPUT_NAME, OUTPUT_NAME, export_graph
    from repquant.graph.interface import flattened
    from repquant.report.disagreements import disagreement_records
    from repquant.report.rows import measured_row
    from repquant.report.thumbnails import CALIBRATION, EVALUATION, FILE, Thumbnails, write_thumbnails
    from repquant.runtimes.available import open_runtime
    from repquant.runtimes.pytorch import PyTorchRuntime

    simulated_only = target.activation.bits < 8
    with progress("export", 1 if simulated_only else 1 + len(quantized)) as advance:
        sizes = {
            FLOAT: export_graph(float_graph, folder / f"{FLOAT}.onnx", inputs=(INPUT_NAME,), outputs=(OUTPUT_NAME,))
        }
        advance(1)
        for name, model in {} if simulated_only else quantized.items():
            sizes[name] = export_graph(
                model, folder / f"{name}.onnx", target, inputs=(INPUT_NAME,), outputs=(OUTPUT_NAME,)
            )
            require_taken(folder / f"{name}.onnx", target.name)
            advance(1)

    engines: dict[str, Runtime] = {FLOAT: PyTorchRuntime(flattened(float_graph))}
    compare: list[Pair] = []
    for name, model in quantized.items():
        simulation = f"{name}/pytorch"
        engines[simulation] = PyTorchRuntime(flattened(model))
        compare.append((simulation, FLOAT))
        for runtime in runtimes:
            if runtime != "pytorch":
                engine = f"{name}/{runtime}"
                engines[engine] = open_runtime(runtime, folder / f"{name}.onnx")
                compare += [(engine, FLOAT), (engine, simulation)]

    with progress(f"evaluate {len(engines)} models", loader.images) as advance:
        evaluation = evaluate(engines, loader, compare=compare, on_images=advance)

    rows = [
        measured_row(
            evaluation,
            f"{name}/{runtime}",
            runtime=runtime,
            runtime_version=engines[f"{name}/{runtime}"].version,
            calibrator=name,
            float_name=FLOAT,
            simulation_name=None if runtime == "pytorch" else f"{name}/pytorch",
            model=None if simulated_only else str(shown_folder / f"{name}.onnx"),
            file_bytes=sizes.get(name),
        )
        for name in quantized
        for runtime in runtimes
    ]
    float_row = measured_row(
        evaluation,
        FLOAT,
        runtime="pytorch",
        runtime_version=engines[FLOAT].version,
        model=str(shown_folder / f"{FLOAT}.onnx"),
        file_bytes=sizes[FLOAT],
    )
    found = {name: largest_disagreements(evaluation, f"{name}/pytorch", FLOAT, _DISAGREEMENTS) for name in quantized}
    places = sorted({each.position for disagreements in found.values() for each in disagreements})
    examples = dict(zip(places, loader.examples(places), strict=True))
    pictures = {CALIBRATION: calibration.examples(), EVALUATION: examples.values()}
    write_thumbnails(Thumbnails.of(pictures), folder / FILE)
    return Proof(float_row, tuple(rows), disagreement_records(found, examples, loader.class_name))
