"""The proof of a quantized model: exported, run by each runtime, compared with float and with its simulation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from repquant.cli.console import progress, say, show

if TYPE_CHECKING:
    from torch import nn

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


def require_taken(path: Path, target: Target) -> None:
    """Hold a file that this program wrote to the rules of its target.

    Raises:
        AssertionError: the target would refuse it: an error of this program.
    """
    from repquant.check import check
    from repquant.runtimes.available import installed

    if target.name != "tensorrt" and target.name not in installed():
        return  # only the runtime itself could tell
    refused = [str(finding) for finding in check(path, target.name) if finding.is_refused]
    assert not refused, (
        f"{path} was written for {target.name}, which refuses it; please report this: {'; '.join(refused)}"
    )


def prove(
    float_model: nn.Module,
    quantized: Mapping[str, nn.Module],
    loader: Loader,
    runtimes: Sequence[str],
    image_size: int,
    folder: Path,
    shown_folder: Path,
    target: Target,
) -> Proof:
    """Export every model into `folder`, run it in every runtime on the same images, and return the rows.

    Args:
        float_model: deploy model.
        quantized: name (of the calibrator or method) -> quantized model.
        loader: evaluation images.
        runtimes: names; the simulation always runs, as the reference of parity, and has a row where `pytorch` is named.
        image_size: side of the images in pixels.
        folder: existing folder that the files are written to.
        shown_folder: the folder's final name, for the record.
        target: of the quantized models. Activations of fewer than 8 bits can't be exported; `runtimes` is then pytorch
            alone.
    """
    from repquant.evaluate.stream import Pair, evaluate
    from repquant.export.onnx import export_onnx
    from repquant.report.rows import measured_row
    from repquant.runtimes.available import open_runtime
    from repquant.runtimes.pytorch import PyTorchRuntime

    simulated_only = target.activation.bits < 8
    with progress("export", 1 if simulated_only else 1 + len(quantized)) as advance:
        sizes = {FLOAT: export_onnx(float_model, folder / f"{FLOAT}.onnx", image_size)}
        advance(1)
        for name, model in {} if simulated_only else quantized.items():
            sizes[name] = export_onnx(model, folder / f"{name}.onnx", image_size, target)
            require_taken(folder / f"{name}.onnx", target)
            advance(1)

    engines: dict[str, Runtime] = {FLOAT: PyTorchRuntime(float_model)}
    compare: list[Pair] = []
    for name, model in quantized.items():
        simulation = f"{name}/pytorch"
        engines[simulation] = PyTorchRuntime(model)
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
    return Proof(float_row, tuple(rows))
