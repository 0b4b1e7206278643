"""How fast files are on the runtimes of this machine, beside the float one, in one alternating run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from repquant.atomic import replace_file
from repquant.bench.environment import environment, machine_lines
from repquant.bench.inputs import Arrays, input_types, make_inputs
from repquant.bench.latency import measure_latency
from repquant.bench.macs import multiply_accumulates
from repquant.bench.measurement import Measurement, summarize
from repquant.bench.memory import own_memory
from repquant.bench.peak import int8_peak
from repquant.errors import InputError
from repquant.report.speed import markdown_table
from repquant.runtimes.available import ENGINES, installed, open_runtime, require
from repquant.runtimes.interface import FileRuntime, ProfiledRuntime
from repquant.targets.onnx_graph import read_graph

_ON_GPU = ("tensorrt",)
_ONNX = ".onnx"
_ENGINE_SUFFIXES = (".engine", ".plan")
_OTHER_SUFFIXES = (*_ENGINE_SUFFIXES, *sorted({engine.suffix for engine in ENGINES.values()} - {_ONNX}))
_PROFILED_RUNS = 10

Told = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What was measured; `print` shows it.

    Attributes:
        rows: one for each file, runtime, number of threads and batch.
        baseline: the file that ratios are to, as `Measurement.model` names it; None without one.
        peaks: the most GMAC/s that products of int8 matrices reached here: "cpu" or "gpu", and the threads.
        rounds, warm_up: calls that were measured, and calls before them.
        environment: the machine and the versions.
        load_average: of the last minute before the start.
    """

    rows: tuple[Measurement, ...]
    baseline: str | None
    peaks: tuple[tuple[str, int | None, float], ...]
    rounds: int
    warm_up: int
    environment: dict[str, Any]
    load_average: float

    def __str__(self) -> str:
        """The rows as a Markdown table, and the machine under it."""
        told = machine_lines(self.environment, self.load_average)
        return "\n".join([markdown_table(self.rows), *told])

    def save(self, path: str | PathLike[str]) -> Path:
        """Write everything as JSON, samples and layers included, or the table as Markdown, and return the path.

        Args:
            path: of the file, which appears whole or not at all; `.md` is Markdown, all others are JSON.

        Raises:
            InputError: the folder can't be written.
        """
        path = Path(path)
        text = str(self) if path.suffix == ".md" else json.dumps(asdict(self), indent=2, allow_nan=False)
        with replace_file(path) as temporary:
            temporary.write_text(f"{text}\n", encoding="utf-8")
        return path


@dataclass(frozen=True, kw_only=True)
class _File:
    """A file to measure: its name in the result, and what is read off it where it is ONNX."""

    name: str
    path: Path
    types: Mapping[str, Any]
    model: Any

    @classmethod
    def read(cls, path: Path, name: str) -> _File:
        if path.suffix in _OTHER_SUFFIXES:
            return cls(name=name, path=path, types={}, model=None)
        model = read_graph(path).model
        return cls(name=name, path=path, types=input_types(model), model=model)

    def is_for(self, runtime: str) -> bool:
        """Whether a runtime reads files of this kind: ONNX where the name says nothing else."""
        suffix = self.path.suffix
        if suffix in _OTHER_SUFFIXES:
            return ENGINES[runtime].suffix == suffix or (runtime == "tensorrt" and suffix in _ENGINE_SUFFIXES)
        return ENGINES[runtime].suffix == _ONNX

    def macs(self, inputs: Arrays) -> int | None:
        if self.model is None:
            return None
        return multiply_accumulates(self.model, {name: array.shape for name, array in inputs.items()})


def benchmark(
    *paths: str | PathLike[str],
    baseline: str | PathLike[str] | None = None,
    runtimes: Sequence[str] | None = None,
    threads: Sequence[int | None] = (None,),
    batch: Sequence[int] = (1,),
    rounds: int = 50,
    warm_up: int = 5,
    size: int = 224,
    on_step: Told = lambda _: None,
) -> Benchmark:
    """Measure files of any tool: latency, throughput, memory, arithmetic, and where the time goes.

    In each round every file that a runtime reads runs once, in an order that is shuffled each round. Ratios are the
    median of the rounds' ratios, with a bootstrap interval over rounds. Inputs are random. Runtimes take turns as a
    whole: the threads of one are busy for a while behind a call, and would slow down the next.

    Args:
        paths: ONNX, .tflite, .pte and .param files; for TensorRT engines, too.
        baseline: file that ratios are to, as a rule the float one; it has rows of its own. Files of another kind have
            no ratio.
        runtimes: "onnxruntime", "openvino", "tensorrt", "litert", "executorch", "ncnn"; by default those that are
            installed and read a file.
        threads: of a runtime on the CPU; None leaves them to it.
        batch: images a call.
        rounds: calls of each file that are measured.
        warm_up: calls before them.
        size: stands for sizes of the inputs besides the batch that a file leaves open.
        on_step: told what is measured next.

    Raises:
        InputError: no file, one that can't be read or run or that no runtime reads, a runtime that is not installed or
            reads none of the files, inputs of the files that differ in size, or a number that is out of its range.
    """
    if wrong := [number for number in (*threads, *batch) if number is not None and number < 1]:
        raise InputError(f"threads and batches of {wrong[0]} were asked for; give numbers from 1 on")
    files = _read([*([baseline] if baseline is not None else []), *paths])
    readers = _readers(files, runtimes)
    measured = {"rounds": rounds, "warm_up": warm_up}
    load = round(os.getloadavg()[0], 2)
    rows: list[Measurement] = []
    peaks: dict[tuple[str, int | None], float] = {}
    for runtime, own in readers.items():
        has_baseline = baseline is not None and own[0] is files[0]
        for count in dict.fromkeys((None,) if runtime in _ON_GPU else threads):
            engines = [open_runtime(runtime, file.path, count) for file in own]
            inputs = {images: _inputs(own, engines, images, size) for images in batch}
            if ENGINES[runtime].suffix == _ONNX:  # the products are an ONNX file
                on_step(f"{runtime}, {_threads(count)}: int8 peak")
                place = _place(runtime), count
                peaks[place] = max(peaks.get(place, 0.0), int8_peak(runtime, count))
            for images, given in inputs.items():
                on_step(f"{runtime}, {_threads(count)}, batch {images}: {len(own)} files, {rounds} rounds")
                rows += _rows(own, engines, given, images, count, has_baseline, measured)
    return Benchmark(
        rows=tuple(_with_share(row, peaks) for row in rows),
        baseline=files[0].name if baseline is not None else None,
        peaks=tuple((where, count, peak) for (where, count), peak in peaks.items()),
        environment=environment(),
        load_average=load,
        **measured,
    )


def _read(paths: Sequence[str | PathLike[str]]) -> list[_File]:
    unique = list(dict.fromkeys(map(Path, paths)))
    if not unique:
        raise InputError("there is no file to measure; give at least one")
    stems, names = [path.stem for path in unique], [path.name for path in unique]
    return [
        _File.read(path, stem if stems.count(stem) == 1 else name if names.count(name) == 1 else str(path))
        for path, stem, name in zip(unique, stems, names, strict=True)
    ]


def _readers(files: Sequence[_File], runtimes: Sequence[str] | None) -> dict[str, list[_File]]:
    """Return the runtimes that were asked for, else those that are installed and have something to run -> their files.

    Raises:
        InputError: a runtime that is not installed or reads none of the files, or a file that none of them reads.
    """
    names = tuple(runtimes or (name for name in installed() if name != "pytorch"))
    for name in names:
        require(name)
    found = {name: [file for file in files if file.is_for(name)] for name in names}
    for name in runtimes or ():
        if not found[name]:
            raise InputError(f"runtime {name} reads none of the files; leave it out, or give a file that it reads")
    for file in files:
        if not any(file in own for own in found.values()):
            fitting = [name for name in ENGINES if name != "pytorch" and file.is_for(name)]
            raise InputError(
                f"no runtime reads {file.path}: {', '.join(fitting)} would; ask for one of them, and install it "
                f"(pip install '{ENGINES[fitting[0]].package}')"
            )
    return {name: own for name, own in found.items() if own}


def _inputs(files: Sequence[_File], engines: Sequence[FileRuntime], batch: int, size: int) -> list[Arrays]:
    """Return what each file is given.

    Raises:
        InputError: the files differ in how much they are given.
    """
    inputs = [
        make_inputs(file.path, engine.inputs, file.types, batch, size)
        for file, engine in zip(files, engines, strict=True)
    ]
    totals = [sorted(array.size for array in arrays.values()) for arrays in inputs]
    for file, arrays, total in zip(files, inputs, totals, strict=True):
        if total != totals[0]:
            shapes = [{name: array.shape for name, array in given.items()} for given in (arrays, inputs[0])]
            raise InputError(
                f"{file.name} takes {shapes[0]}, and {files[0].name} {shapes[1]}: their times can't be compared; give "
                "files for inputs of the same size"
            )
    return inputs


def _rows(
    files: Sequence[_File],
    engines: Sequence[FileRuntime],
    inputs: Sequence[Arrays],
    batch: int,
    threads: int | None,
    has_baseline: bool,
    measured: Mapping[str, int],
) -> Iterator[Measurement]:
    calls = {file.name: _call(engine, arrays) for file, engine, arrays in zip(files, engines, inputs, strict=True)}
    samples = measure_latency(calls, **measured)
    for file, engine, arrays in zip(files, engines, inputs, strict=True):
        described = {name: (array.shape, array.dtype.name) for name, array in arrays.items()}
        yield summarize(
            file.name,
            samples[file.name],
            samples[files[0].name] if has_baseline else None,
            runtime=engine.name,
            runtime_version=engine.version,
            threads=threads,
            batch=batch,
            macs=file.macs(arrays),
            memory_mb=own_memory(engine.name, file.path, described, threads),
            layers=engine.profile(*arrays.values(), runs=_PROFILED_RUNS) if isinstance(engine, ProfiledRuntime) else (),
        )


def _call(engine: FileRuntime, arrays: Arrays) -> Callable[[], object]:
    given = tuple(arrays.values())
    return lambda: engine(*given)


def _with_share(row: Measurement, peaks: Mapping[tuple[str, int | None], float]) -> Measurement:
    if row.gmacs_per_second is None:
        return row
    return replace(row, peak_share=100 * row.gmacs_per_second / peaks[_place(row.runtime), row.threads])


def _place(runtime: str) -> str:
    return "gpu" if runtime in _ON_GPU else "cpu"


def _threads(count: int | None) -> str:
    return "threads as it likes" if count is None else f"threads {count}"
