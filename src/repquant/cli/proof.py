"""The proof of a quantized model: exported, run by each runtime, compared with float and with its simulation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from repquant.cli.console import progress, say
from repquant.cli.options import AUTO, RUNTIME_NAMES
from repquant.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import fx

    from repquant.cli.inputs import Calibration
    from repquant.data.loading import Loader
    from repquant.report.record import DisagreementRecord
    from repquant.report.rows import Row
    from repquant.runtimes.interface import Runtime
    from repquant.targets.target import Target

FLOAT = "float"

_DISAGREEMENTS = 8  # of each quantized model, for the record


@dataclass(frozen=True)
class Proof:
    """What was measured, and where.

    Attributes:
        float_row: of the float model.
        rows: one for each quantized model and runtime.
        disagreements: images that float and INT8 see otherwise.
        environment: as `bench.environment` gives it.
    """

    float_row: Row
    rows: tuple[Row, ...]
    disagreements: tuple[DisagreementRecord, ...]
    environment: dict[str, object]


def proving_runtimes(names: str, target: Target) -> tuple[str, ...]:
    """Return the runtimes that `--runtimes` names for a target.

    `auto` stands for the simulation and those of the usual ones that are installed; it is said which are not. `all`
    stands for those that are installed and fit.

    Raises:
        InputError: a runtime that is not known, not installed or can't execute what is made for the target, such as
            activations of fewer than 8 bits.
    """
    from repquant.runtimes.available import ENGINES, default_runtimes, fits, installed, require, require_fit

    fitting = tuple(name for name in installed() if fits(name, target.name))
    if names.strip() == AUTO:
        usual = ("pytorch", *default_runtimes(target.name))
        if missing := [name for name in usual if name not in fitting]:
            packages = " ".join(f"'{ENGINES[name].package}'" for name in missing)
            say(f"not installed, and left out: {', '.join(missing)} (pip install {packages})")
        runtimes = tuple(name for name in usual if name in fitting)
    else:
        runtimes = RUNTIME_NAMES.split(names, fitting)
    for name in runtimes:
        require(name)
    require_fit(runtimes, target.name)
    if target.activation.bits < 8 and (others := [name for name in runtimes if name != "pytorch"]):
        raise InputError(
            f"activations of {target.activation.bits} bits can only be simulated, but {', '.join(others)} was asked "
            "for; pass --runtimes pytorch"
        )
    return runtimes


def prove(
    float_graph: fx.GraphModule,
    quantized: Mapping[str, fx.GraphModule],
    loader: Loader,
    calibration: Calibration,
    runtimes: Sequence[str],
    folder: Path,
    shown_folder: Path,
    target: Target,
    *,
    benchmark: bool = False,
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
        benchmark: measure latency too, of one image, beside the float file in the same runtime.
    """
    from repquant.bench.environment import environment
    from repquant.check import require_taken
    from repquant.cli.inputs import file_facts
    from repquant.evaluate.disagreement import largest_disagreements
    from repquant.evaluate.stream import Pair, evaluate
    from repquant.export.files import EXECUTORCH, ONNX, SUFFIXES, export_file
    from repquant.export.onnx import INPUT_NAME, OUTPUT_NAME
    from repquant.graph.interface import flattened
    from repquant.report.disagreements import disagreement_records
    from repquant.report.rows import measured_row
    from repquant.report.thumbnails import CALIBRATION, EVALUATION, FILE, Thumbnails, write_thumbnails
    from repquant.runtimes.available import ENGINES, open_runtime
    from repquant.runtimes.pytorch import PyTorchRuntime
    from repquant.targets.executorch_file import read_executorch

    of_runtime = {name: ENGINES[name].suffix for name in runtimes if name != "pytorch"}
    of_target = SUFFIXES[target.name][0]
    of_runtime["pytorch"] = of_target  # what the simulation stands for
    suffixes = () if target.activation.bits < 8 else tuple(dict.fromkeys((of_target, *of_runtime.values())))
    files = {(name, suffix): folder / f"{name}{suffix}" for name in quantized for suffix in suffixes}
    export = partial(export_file, inputs=(INPUT_NAME,), outputs=(OUTPUT_NAME,))
    sizes: dict[Path, int] = {}
    with progress("export", 1 + len(files)) as advance:
        float_bytes = export(float_graph, folder / f"{FLOAT}{ONNX}", facts=file_facts(loader))
        advance(1)
        for (name, _), path in files.items():
            sizes[path] = export(quantized[name], path, target, facts=file_facts(loader, name))
            require_taken(path, target.name)
            if path.suffix == EXECUTORCH:
                say(f"{path.name}: {read_executorch(path).delegation()}")
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
            file_bytes=sizes[file] if file else None,
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
    if benchmark:
        for runtime in runtimes:
            if runtime != "pytorch":
                say(f"latency in {runtime}: {1 + len(quantized)} files in turns")
                loaded = {name: engines[f"{name}/{runtime}"] for name in quantized}
                float_file = folder / f"{FLOAT}{of_runtime[runtime]}"
                if not float_file.exists():
                    export(float_graph, float_file)
                images = next(iter(loader)).images[:1].numpy()
                rows = with_latency(rows, open_runtime(runtime, float_file), loaded, images)
    found = {name: largest_disagreements(evaluation, f"{name}/pytorch", FLOAT, _DISAGREEMENTS) for name in quantized}
    places = sorted({each.position for disagreements in found.values() for each in disagreements})
    examples = dict(zip(places, loader.examples(places), strict=True))
    pictures = {CALIBRATION: calibration.examples(), EVALUATION: examples.values()}
    write_thumbnails(Thumbnails.of(pictures), folder / FILE)
    return Proof(
        float_row=float_row,
        rows=tuple(rows),
        disagreements=disagreement_records(found, examples, loader.class_name),
        environment=environment({runtime: engines[f"{name}/{runtime}"] for name in quantized for runtime in runtimes}),
    )


def with_latency(
    rows: Sequence[Row], float_file: Runtime, files: Mapping[str, Runtime], images: NDArray[np.float32]
) -> list[Row]:
    """Return the rows, those of one runtime with its latency.

    Args:
        rows: of all runtimes.
        float_file: in the runtime.
        files: calibrator -> its file in the same runtime.
        images: of a call, (N, 3, H, W).
    """
    from repquant.bench.latency import measure_latency, ratio

    calls = {name: partial(engine, images) for name, engine in {**files, FLOAT: float_file}.items()}
    samples = measure_latency(calls)
    measured = []
    for row in rows:
        if row.runtime == float_file.name and row.calibrator is not None:
            compared = ratio(samples[row.calibrator], samples[FLOAT])
            row = replace(
                row,
                latency_ms=median(samples[row.calibrator]),
                latency_ratio=compared.median,
                latency_ratio_ci95=compared.ci95,
            )
        measured.append(row)
    return measured
