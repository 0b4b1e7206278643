"""The proof of a quantized model: exported, run by each runtime, compared with float and with its simulation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from repquant.cli.console import progress, say, show

if TYPE_CHECKING:
    from torch import fx

    from repquant.data.loading import Loader
    from repquant.report.record import Record
    from repquant.report.rows import Row
    from repquant.runtimes.interface import Runtime
    from repquant.targets.target import Target

FLOAT = "float"


@dataclass(frozen=True)
class Proof:
    """The float row, and one row for each quantized model and runtime."""

    float_row: Row
    rows: tuple[Row, ...]


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
        runtimes: names; the simulation always runs, as the reference of parity, and has a row where `pytorch` is named.
        folder: existing folder that the files are written to.
        shown_folder: the folder's final name, for the record.
        target: of the quantized models. Activations of fewer than 8 bits can't be exported; `runtimes` is then pytorch
            alone.
    """
    from repquant.check import require_taken
    from repquant.evaluate.stream import Pair, evaluate
    from repquant.export.files import ONNX, SUFFIXES, export_file
    from repquant.export.onnx import INPUT_NAME, OUTPUT_NAME
    from repquant.graph.interface import flattened
    from repquant.report.rows import measured_row
    from repquant.runtimes.available import ENGINES, open_runtime
    from repquant.runtimes.pytorch import PyTorchRuntime

    of_runtime = {name: ENGINES[name].suffix for name in runtimes if name != "pytorch"}
    of_target = SUFFIXES[target.name][0]
    of_runtime["pytorch"] = of_target  # what the simulation stands for
    suffixes = () if target.activation.bits < 8 else tuple(dict.fromkeys((of_target, *of_runtime.values())))
    files = {(name, suffix): folder / f"{name}{suffix}" for name in quantized for suffix in suffixes}
    export = partial(export_file, inputs=(INPUT_NAME,), outputs=(OUTPUT_NAME,))
    with progress("export", 1 + len(files)) as advance:
        float_bytes = export(float_graph, folder / f"{FLOAT}{ONNX}")
        advance(1)
        for (name, _), path in files.items():
            export(quantized[name], path, target)
            require_taken(path, target.name)
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
                engines[engine] = open_runtime(runtime, files[name, of_runtime[runtime]])
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
            model=str(shown_folder / file.name) if file else None,
            file_bytes=file.stat().st_size if file else None,
        )
        for name in quantized
        for runtime in runtimes
        for file in [files.get((name, of_runtime[runtime]))]
    ]
    float_row = measured_row(
        evaluation,
        FLOAT,
        runtime="pytorch",
        runtime_version=engines[FLOAT].version,
        model=str(shown_folder / f"{FLOAT}{ONNX}"),
        file_bytes=float_bytes,
    )
    return Proof(float_row, tuple(rows))
