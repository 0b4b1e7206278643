"""Measure the speed of files, of any tool, on the runtimes of this machine.

In each round every file runs once, in a shuffled order, so that ratios hold on a machine that is not quiet. Besides
latency: throughput, memory, multiply-accumulates a second and their share of the most that int8 matrix products reach
here, and by the runtime's own profiler, the time of each layer and which of them do not run in integers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from repquant.choices import RUNTIMES
from repquant.cli.console import finish, say, show, show_configuration
from repquant.cli.options import argument
from repquant.errors import InputError
from repquant.option_ranges import COUNT, IMAGE_SIDE, POSITIVE_COUNT, Names, option

if TYPE_CHECKING:
    from repquant.bench.measurement import Measurement
    from repquant.benchmark import Benchmark

_NOT_IN_HEADLINE = ("layers", "samples_ms")
_RUNTIME_NAMES = Names(tuple(name for name in RUNTIMES if name != "pytorch"))
EXAMPLE = "repquant benchmark runs/a0/mse.onnx --float runs/a0/float.onnx --threads 1,2 --batch 1,16"

_FLOAT_FILE = 90
"""Percent of the time in float: nobody asks which kernels of a file with more are not in integers."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `repquant benchmark`."""

    files: tuple[str, ...] = argument("ONNX, .tflite, .pte and .param files; for tensorrt engines, too")
    float: str = option("file that ratios are to; another one than the float one serves as well", "")
    runtimes: str = option("what executes the files; default: all that are installed and read one", "", _RUNTIME_NAMES)
    threads: str = option("threads of a runtime, several numbers with commas; default: as many as it likes", "")
    batch: str = option("images a call, several numbers with commas", "1")
    rounds: int = option("calls of each file that are measured", 50, POSITIVE_COUNT)
    warm_up: int = option("calls before them", 5, COUNT)
    image_size: int = option("side of the images, in pixels, where a file leaves it open", 224, IMAGE_SIDE)
    layers: int = option("slowest layers to show of each file in each runtime; 0: none", 5, COUNT)
    output: str = option("file to write: .json for everything, every layer and call included, .md for the table", "")
    overwrite: bool = option("replace the output file if it exists", False)


def run(options: Options) -> None:
    """Run the verb."""
    show_configuration("benchmark", options)
    from repquant.benchmark import benchmark
    from repquant.cli.outputs import output_file
    from repquant.report.speed import layer_table, screen_tables

    output = output_file(options, (".json", ".md")) if options.output else None
    measured = benchmark(
        *options.files,
        baseline=options.float or None,
        runtimes=None if options.runtimes in ("", "all") else _RUNTIME_NAMES.split(options.runtimes),
        threads=_numbers("threads", options.threads) if options.threads else (None,),
        batch=_numbers("batch", options.batch),
        rounds=options.rounds,
        warm_up=options.warm_up,
        size=options.image_size,
        on_step=say,
    )
    for table in screen_tables(measured.rows):
        show(table)
    for row in _first_settings(measured) if options.layers else ():
        show(layer_table(row, options.layers))
    for sentence in _sentences(measured):
        say(sentence)
    if output:
        measured.save(output)
    finish(_headline(measured, options.output or None))


def _numbers(name: str, value: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in value.split(","))
    except ValueError as error:
        raise InputError(f"--{name} {value} was given; give numbers with commas, for example 1,2") from error
    if min(numbers) < 1:
        raise InputError(f"--{name} {value} was given; give numbers from 1 on")
    return numbers


def _first_settings(measured: Benchmark) -> Iterator[Measurement]:
    """Yield a row of each file and runtime: where the time goes differs little from one setting to another."""
    seen = set()
    for row in measured.rows:
        if row.layers and (row.model, row.runtime) not in seen:
            seen.add((row.model, row.runtime))
            yield row


def _sentences(measured: Benchmark) -> Iterator[str]:
    """Yield what the table has no place for: the machine's peak, and what does not run in integers."""
    flags = ", ".join(measured.environment["cpu_int8_flags"]) or "no int8 instructions such as VNNI or AMX"
    for where, threads, peak in measured.peaks:
        machine = f"this CPU ({flags})" if where == "cpu" else "this GPU"
        counted = "" if threads is None else f" with {threads} threads"
        yield f"int8 matrix products reach {peak:,.1f} GMAC/s on {machine}{counted}"
    for row in _first_settings(measured):
        kernels = [layer for layer in row.layers if layer.is_float]
        if kernels and (row.float_share or 0) < _FLOAT_FILE:
            named = ", ".join(f"{layer.name} ({layer.precision}, {layer.milliseconds:.3f} ms)" for layer in kernels)
            yield f"{row.model} in {row.runtime}, not in integers: {named}"


def _headline(measured: Benchmark, output: str | None) -> dict[str, Any]:
    rows = [
        {name: _rounded(value) for name, value in asdict(row).items() if name not in _NOT_IN_HEADLINE}
        | {"float_kernels": [layer.name for layer in row.layers if layer.is_float]}
        for row in measured.rows
    ]
    return {"output": output, "baseline": measured.baseline, "rounds": measured.rounds, "results": rows}


def _rounded(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_rounded(part) for part in value]
    return round(value, 4) if isinstance(value, float) else value
