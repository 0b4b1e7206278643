"""What scripts/verify_on_gpu.sh runs: each way to store a file for TensorRT, proved on TensorRT, as a page.

Not executed yet where TensorRT is; tests/test_verify_on_gpu.py runs it against a stand-in.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from repquant.report.record import read_record
from repquant.report.tables import COMPARISON, markdown_section

WAYS = {
    "int8 weights, float32 scales": ("--tensorrt-weights", "int8", "--tensorrt-scales", "float32"),
    "float weights behind Q/DQ, float32 scales": ("--tensorrt-weights", "float", "--tensorrt-scales", "float32"),
    "int8 weights, float16 scales": ("--tensorrt-weights", "int8", "--tensorrt-scales", "float16"),
}
LEAST_PARITY = 99.9


def main() -> int:
    """Run all ways, write the page, and return 1 where TensorRT is not image by image what was simulated."""
    arguments, options = parse()
    sections, parities = [], []
    for index, (way, storage) in enumerate(WAYS.items()):
        folder = arguments.runs / f"tensorrt-{index}"
        prove(arguments, options, storage, folder)
        engine = build(folder / f"{arguments.calibrator}.onnx", folder / "int8.engine")
        record = read_record(folder / "result.json")
        parities += [row.parity for row in record.results if row.runtime == "tensorrt"]
        sections += [markdown_section(record, COMPARISON, way), describe(engine)]
    first = arguments.runs / "tensorrt-0"
    build(first / "float.onnx", first / "float.engine", "--float")
    sections.append(measure(first))
    arguments.output.write_text(page(options, sections), encoding="utf-8")
    print(f"{arguments.output}: parity {', '.join(f'{parity:.2f} %' for parity in parities)}")
    return int(min(parities) < LEAST_PARITY)


def parse() -> tuple[argparse.Namespace, list[str]]:
    """Return what is for this script, and the options that are handed on to `repquant ptq`."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("data", help="folder with train/ and val/, or builtin")
    parser.add_argument("weights", help="checkpoint, or builtin")
    parser.add_argument("--calibrator", default="mse")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder for what is built")
    parser.add_argument("--output", type=Path, default=Path("results/tensorrt.md"))
    return parser.parse_known_args()


def prove(arguments: argparse.Namespace, options: list[str], storage: tuple[str, ...], folder: Path) -> None:
    """Quantize, export, and run simulation and TensorRT on the same images."""
    arguments.runs.mkdir(parents=True, exist_ok=True)
    repquant(
        "ptq", "--data", arguments.data, "--weights", arguments.weights, *options, "--target", "tensorrt", *storage,
        "--calibrator", arguments.calibrator, "--runtimes", "pytorch,tensorrt", "--output", str(folder),
        "--overwrite", "true",
    )  # fmt: skip


def build(file: Path, output: Path, *options: str) -> dict[str, Any]:
    """Build an engine and return what `repquant engine` says of it."""
    return repquant("engine", str(file), "--output", str(output), "--overwrite", "true", *options)


def describe(engine: dict[str, Any]) -> str:
    """Return which layers the engine has, by type."""
    layers = ", ".join(f"{count} {kind}" for kind, count in engine["layers"].items())
    return f"- TensorRT {engine['tensorrt']}; layers of the engine: {layers}.\n- `{engine['trtexec']}`\n"


def measure(folder: Path) -> str:
    """Return the latency of the INT8 engine beside the float one."""
    page = folder / "latency.md"
    repquant(
        "benchmark", str(folder / "int8.engine"), "--float", str(folder / "float.engine"), "--batch", "1,16",
        "--runtimes", "tensorrt", "--output", str(page), "--overwrite",
    )  # fmt: skip
    return f"## Latency\n\n{page.read_text(encoding='utf-8')}"


def page(options: list[str], sections: list[str]) -> str:
    """Return the whole page."""
    head = (
        "# The files for TensorRT in TensorRT\n\n"
        f"`scripts/verify_on_gpu.sh DATA WEIGHTS {' '.join(options)}`. Parity: the same class as the integer "
        f"simulation, image by image. GPU and driver: {gpu()}.\n"
    )
    return "\n".join([head, *sections])


def gpu() -> str:
    """Return the GPU's name and its driver's version, as the driver tells them."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    except FileNotFoundError:
        return "unknown"


def repquant(*arguments: str) -> dict[str, Any]:
    """Run a verb and return its headline."""
    answer: dict[str, Any] = json.loads(run("-m", "repquant", *arguments).strip().splitlines()[-1])
    return answer


def run(*arguments: str) -> str:
    """Run python and return what it wrote to stdout; stderr is shown."""
    return subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    sys.exit(main())
