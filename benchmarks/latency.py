"""Latency of ONNX files beside a baseline, in one alternating run for each runtime and batch size.

    python benchmarks/latency.py --baseline plain.onnx other.onnx ... --image-size 160 --batch-sizes 1,16 \\
        --runtimes onnxruntime,openvino --rounds 50 [--markdown FILE]

In each round every model runs once, in a shuffled order. The ratio to the baseline is the median of the rounds' ratios,
with a 95 % bootstrap interval over rounds. Images are random: integers and floats take as long whatever they hold.
The last line on stdout is one line of JSON, raw samples included.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from repquant.bench.environment import environment, machine_lines
from repquant.bench.latency import measure_latency, ratio
from repquant.errors import InputError
from repquant.runtimes.available import open_runtime

COLUMNS = ("runtime", "batch", "model", "median ms", "p95 ms", "ratio to baseline [95 %]")


def main() -> int:
    arguments = parse()
    load = os.getloadavg()[0]
    try:
        rows = measure(arguments)
    except InputError as error:
        print(f"latency: {error}", file=sys.stderr)
        return 2
    result: dict[str, Any] = {
        "baseline": label(arguments.baseline, arguments.models),
        "image_size": arguments.image_size,
        "rounds": arguments.rounds,
        "threads": arguments.threads,
        "rows": rows,
        "load_average_before": round(load, 2),
        "environment": environment(),
    }
    show(rows)
    if arguments.markdown:
        arguments.markdown.write_text(markdown(result), encoding="utf-8")
    print(json.dumps(result))
    return 0


def parse(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="*", help="ONNX files to compare with the baseline")
    parser.add_argument("--baseline", type=Path, required=True, help="ONNX file that ratios are to")
    parser.add_argument("--image-size", type=int, default=160)
    parser.add_argument("--batch-sizes", type=numbers, default=(1, 16), help="images a call, with commas")
    parser.add_argument("--runtimes", default="onnxruntime,openvino", help="engines, with commas")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--warm-up", type=int, default=5, help="rounds before those that are measured")
    parser.add_argument("--threads", type=int, help="of each engine; its own choice where not given")
    parser.add_argument("--markdown", type=Path, help="also write the table to this file")
    return parser.parse_args(given)


def numbers(text: str) -> tuple[int, ...]:
    values = tuple(int(part) for part in text.split(","))
    if min(values) < 1:
        raise argparse.ArgumentTypeError(f"{text}: give positive numbers with commas")
    return values


def label(path: Path, others: Sequence[Path]) -> str:
    """Return the file's name without its ending, or its path where another file has the same name."""
    return str(path) if any(other != path and other.stem == path.stem for other in others) else path.stem


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    paths = list(dict.fromkeys([arguments.baseline, *arguments.models]))
    labels = [label(path, paths) for path in paths]
    rows = []
    for runtime in [name.strip() for name in arguments.runtimes.split(",")]:
        engines = {
            name: open_runtime(runtime, path, arguments.threads) for name, path in zip(labels, paths, strict=True)
        }
        for size in arguments.batch_sizes:
            samples = measure_latency(
                engines, images(size, arguments.image_size), rounds=arguments.rounds, warm_up=arguments.warm_up
            )
            rows += [row(runtime, size, name, samples[name], samples[labels[0]]) for name in labels]
    return rows


def images(count: int, size: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((count, 3, size, size), dtype=np.float32)


def row(runtime: str, size: int, name: str, samples: list[float], baseline: list[float]) -> dict[str, Any]:
    compared = ratio(samples, baseline)
    return {
        "runtime": runtime,
        "batch_size": size,
        "model": name,
        "median_ms": float(np.median(samples)),
        "p95_ms": float(np.percentile(samples, 95)),
        "ratio": compared.median,
        "ratio_ci95": compared.ci95,
        "samples_ms": [round(sample, 4) for sample in samples],
    }


def cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    low, high = row["ratio_ci95"]
    return (
        row["runtime"],
        str(row["batch_size"]),
        row["model"],
        f"{row['median_ms']:.2f}",
        f"{row['p95_ms']:.2f}",
        f"{row['ratio']:.3f} [{low:.3f}, {high:.3f}]",
    )


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    table = Table(*COLUMNS)
    for each in rows:
        table.add_row(*cells(each))
    Console(width=120).print(table)


def markdown(result: Mapping[str, Any]) -> str:
    threads = result["threads"] or "each engine's choice of"
    lines = [
        "# Latency",
        "",
        f"`python benchmarks/latency.py`, {result['rounds']} rounds, images of {result['image_size']} px, {threads} "
        f"threads, baseline {result['baseline']}.",
        "",
        *(f"| {' | '.join(line)} |" for line in (COLUMNS, ["---"] * len(COLUMNS), *map(cells, result["rows"]))),
        "",
        *machine_lines(result["environment"], result["load_average_before"]),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
