"""Time to open a large split of class folders: listed, from the cache, and after one file was added.

    python benchmarks/index_cache.py [--files 200000] [--classes 1000] [--markdown FILE]

Makes empty files named .JPEG in a temporary folder, with a cache folder of its own there. Each opening is a fresh
process's first, but the file system's own cache is warm: on a network file system listing costs more. The last line
on stdout is one line of JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from repquant.bench.environment import environment, machine_lines

COLUMNS = ("opening", "images", "seconds", "ratio to listing", "memory of the index, MB")
OPEN = """
import json, sys, time
from repquant.data.datasets import open_split
start = time.perf_counter()
source = open_split(sys.argv[1], "train")
seconds = time.perf_counter() - start
bytes_held = source.names.content.nbytes + source.names.starts.nbytes + source.labels.nbytes
print(json.dumps({"images": len(source), "seconds": seconds, "megabytes": bytes_held / 1e6}))
"""


def main() -> int:
    arguments = parse()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), arguments.files, arguments.classes, arguments.rounds)
    result = {"rows": rows, "load_average_before": round(load, 2), "environment": environment()}
    result |= {"files": arguments.files, "classes": arguments.classes, "rounds": arguments.rounds}
    show(rows)
    if arguments.markdown:
        arguments.markdown.write_text(markdown(result), encoding="utf-8")
    print(json.dumps(result))
    return 0


def parse(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=200_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3, help="openings of each kind; the median counts")
    parser.add_argument("--markdown", type=Path, help="also write the table to this file")
    return parser.parse_args(given)


def measure(folder: Path, files: int, classes: int, rounds: int) -> list[dict[str, Any]]:
    data, cache = folder / "data", folder / "cache"
    make(data / "train", files, classes)
    time.sleep(3)  # folders that changed in the last two seconds are not relied on
    samples: dict[str, list[dict[str, Any]]] = {"listed": [], "from the cache": [], "after one file was added": []}
    for number in range(rounds):
        for file in cache.rglob("*.npz"):
            file.unlink()
        samples["listed"].append(open_once(data, cache))
        samples["from the cache"].append(open_once(data, cache))
        (data / "train" / "n00000000" / f"added-{number}.JPEG").touch()
        samples["after one file was added"].append(open_once(data, cache))
        time.sleep(3)
    listed = sorted(sample["seconds"] for sample in samples["listed"])[rounds // 2]
    return [row(name, each, listed) for name, each in samples.items()]


def make(split: Path, files: int, classes: int) -> None:
    for label in range(classes):
        folder = split / f"n{label:08d}"
        folder.mkdir(parents=True)
        for number in range(label, files, classes):
            (folder / f"n{label:08d}_{number}.JPEG").touch()


def open_once(data: Path, cache: Path) -> dict[str, Any]:
    command = [sys.executable, "-c", OPEN, str(data)]
    done = subprocess.run(
        command, env={**os.environ, "XDG_CACHE_HOME": str(cache)}, check=True, capture_output=True, text=True
    )
    sample: dict[str, Any] = json.loads(done.stdout)
    return sample


def row(name: str, samples: Sequence[Mapping[str, Any]], listed: float) -> dict[str, Any]:
    seconds = sorted(sample["seconds"] for sample in samples)
    return {
        "opening": name,
        "images": samples[-1]["images"],
        "seconds": seconds[len(seconds) // 2],
        "ratio": seconds[len(seconds) // 2] / listed,
        "megabytes": samples[-1]["megabytes"],
        "samples": seconds,
    }


def cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        row["opening"],
        f"{row['images']:,}",
        f"{row['seconds']:.3f}",
        f"{row['ratio']:.3f}",
        f"{row['megabytes']:.1f}",
    )


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    table = Table(*COLUMNS)
    for each in rows:
        table.add_row(*cells(each))
    Console(width=120).print(table)


def markdown(result: Mapping[str, Any]) -> str:
    lines = [
        "# Opening a large split",
        "",
        f"`python benchmarks/index_cache.py`, {result['files']:,} files in {result['classes']:,} class folders, median "
        f"of {result['rounds']} openings, each in a fresh process, the file system's cache warm.",
        "",
        *(f"| {' | '.join(line)} |" for line in (COLUMNS, ["---"] * len(COLUMNS), *map(cells, result["rows"]))),
        "",
        *machine_lines(result["environment"], result["load_average_before"]),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
