r"""What each step of post-training quantization brings, one at a time, on a target and a bit width.

    python benchmarks/ptq_steps.py --weights repvgg-a0-custom-l2.pth --data imagenette160 \
        --settings "tensorrt;openvino/W4A8" --steps all --json results/ptq-steps.json

Every row is simulated on the same validation images and compared with float, image by image. Seconds run from the float
model in memory to the quantized one, decoding included. Rows that are in the file given with --json already are not
measured again, so an interrupted run goes on.
"""

import argparse
import json
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from repquant.atomic import replace_file
from repquant.bench.environment import environment
from repquant.cli.inputs import open_calibration, transform
from repquant.cli.options import CalibrationOptions, DataOptions
from repquant.cli.quantizing import ImagesOf
from repquant.data.datasets import open_split
from repquant.data.loading import Batch, Loader
from repquant.evaluate.stream import evaluate
from repquant.graph.capture import capture
from repquant.methods.default_calibrator import default_calibrator
from repquant.methods.method import PtqMethod, ReconstructionOptions
from repquant.methods.ptq import prepare
from repquant.models.checkpoints import load_model
from repquant.models.reparam import reparameterize
from repquant.quantize import collect
from repquant.report.rows import measured_row
from repquant.runtimes.interface import Runtime
from repquant.runtimes.pytorch import PyTorchRuntime
from repquant.targets.target import Target, resolve_target

FLOAT = "float"
QDROP = ReconstructionOptions(granularity="block", drop=0.5)
STEPS: dict[str, tuple[PtqMethod, int]] = {
    "nearest": (PtqMethod(equalization="none", rounding="nearest"), 0),
    "biases corrected": (PtqMethod(equalization="none", rounding="nearest"), 256),
    "ranges equalized, biases corrected": (PtqMethod(equalization="ranges", rounding="nearest"), 256),
    "noise equalized, biases corrected": (PtqMethod(equalization="noise", rounding="nearest"), 256),
    "error feedback": (PtqMethod(equalization="none", rounding="feedback"), 256),
    "default: noise equalized, error feedback": (PtqMethod(), 256),
    "noise equalized, learned rounding": (PtqMethod(rounding="learned"), 256),
    "default, residual apart": (PtqMethod(identity="residual"), 256),
    "learned rounding, residual apart": (PtqMethod(rounding="learned", identity="residual"), 256),
    "learned rounding by block": (PtqMethod(rounding="learned", reconstruction=QDROP), 256),
    "learned rounding by block, residual apart": (
        PtqMethod(rounding="learned", identity="residual", reconstruction=QDROP),
        256,
    ),
    "default, depthwise apart": (PtqMethod(identity="depthwise"), 256),
    "default, coarse and fine": (PtqMethod(identity="coarse-fine"), 256),
}


def main() -> None:
    arguments = parse()
    options = DataOptions(data=arguments.data, image_size=arguments.image_size, crop_ratio=arguments.crop_ratio)
    model = reparameterize(load_model(Path(arguments.weights), arguments.arch, arguments.num_classes))
    graph = capture(model, torch.zeros(2, 3, arguments.image_size, arguments.image_size))
    float_runtime = Remembered(PyTorchRuntime(graph))
    validation = images_of(options, arguments.evaluation_images)
    rows = read_rows(arguments.json)
    for setting in arguments.settings.split(";"):
        target = parse_setting(setting)
        name = f"{Path(arguments.weights).stem}, {describe(target)}"
        for step in STEPS if arguments.steps == "all" else arguments.steps.split(";"):
            if any((row["setting"], row["step"], row["images"]) == (name, step, images_in(validation)) for row in rows):
                continue
            method, rounding_images = STEPS[step]
            started = perf_counter()
            quantized = quantize_once(graph, method, target, options, arguments, rounding_images)
            seconds = perf_counter() - started
            rows.append(
                {"setting": name, "step": step, "seconds": seconds} | measure(float_runtime, quantized, validation)
            )
            print(json.dumps(rows[-1]), flush=True)
            with replace_file(arguments.json) as temporary:
                temporary.write_text(json.dumps({"rows": rows, "environment": environment()}, indent=1) + "\n")
    print(tables(rows))


def parse_setting(setting: str) -> Target:
    """Return the target of "name", "name/W4A8", "name/tensor" or "name/W4A8/tensor"."""
    name, *parts = setting.split("/")
    bits = next((part for part in parts if part.startswith("W")), "W8A8")
    weight_bits, activation_bits = (int(number) for number in bits[1:].split("A"))
    return resolve_target(
        name, per_tensor_weights="tensor" in parts, weight_bits=weight_bits, activation_bits=activation_bits
    )


def images_in(batches: list[Batch]) -> int:
    return sum(len(batch.images) for batch in batches)


def quantize_once(
    graph: fx.GraphModule,
    method: PtqMethod,
    target: Target,
    options: DataOptions,
    arguments: argparse.Namespace,
    rounding_images: int,
) -> fx.GraphModule:
    calibration = open_calibration(
        CalibrationOptions(calibration_images=arguments.images), options, options.data, rounding_images
    )
    images = ImagesOf(calibration.ranges)
    calibrated = collect(prepare(graph, method, target, images), images, target, method, ())
    plan = calibrated.plan(arguments.calibrator or default_calibrator(graph, target))
    rounding = () if calibration.rounding is None else ImagesOf(calibration.rounding)
    return calibrated.round(plan, rounding).simulated()


class Remembered:
    """A runtime that runs once on each batch; the batches stay in memory, so their addresses tell them apart."""

    name, version = "pytorch", ""

    def __init__(self, runtime: PyTorchRuntime) -> None:
        self._runtime = runtime
        self._logits: dict[int, NDArray[np.float32]] = {}

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        address = images.ctypes.data
        if address not in self._logits:
            self._logits[address] = self._runtime(images)
        return self._logits[address]


def measure(float_runtime: Remembered, quantized: fx.GraphModule, images: list[Batch]) -> dict[str, Any]:
    runtimes: dict[str, Runtime] = {FLOAT: float_runtime, "quantized": PyTorchRuntime(quantized)}
    evaluation = evaluate(runtimes, images, compare=[("quantized", FLOAT)])
    row = measured_row(evaluation, "quantized", runtime="pytorch", runtime_version="", float_name=FLOAT)
    names = ("images", "top1", "drop", "drop_ci95", "agreement", "kl", "sqnr_db")
    return {name: getattr(row, name) for name in names}


def images_of(options: DataOptions, count: int) -> list[Batch]:
    """Validation images in memory, evenly spread over the classes where not all are taken."""
    source = open_split(options.data, "val")
    indices = range(0, len(source), max(1, len(source) // count) if count else 1)
    return list(Loader(source, transform(options), options.batch_size, indices=indices))


def describe(target: Target) -> str:
    per = "tensor" if target.weight.channel_axis is None else "channel"
    return f"{target.name}, W{target.weight.bits}A{target.activation.bits}, weights per {per}"


def read_rows(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if path.exists() else []
    return rows


def tables(rows: list[dict[str, Any]]) -> str:
    """Return a Markdown section for each setting and number of validation images."""
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["setting"], row["images"]), []).append(row)
    return "\n".join(
        f"## {setting}: {images:,} validation images\n\n{table(group)}\n" for (setting, images), group in groups.items()
    )


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    lines = ["| step | top-1 % | drop [95 %] | agree % | KL x 1000 | SQNR dB | seconds |", "| --- |" + " ---: |" * 6]
    for row in rows:
        low, high = row["drop_ci95"]
        lines.append(
            f"| {row['step']} | {row['top1']:.2f} | {row['drop']:.2f} [{low:.2f}, {high:.2f}] | {row['agreement']:.2f} "
            f"| {1000 * row['kl']:.2f} | {row['sqnr_db']:.1f} | {row['seconds']:.0f} |"
        )
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="RepVGG-A0")
    parser.add_argument("--num-classes", type=int, default=10)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--data", required=True, help="folder with train/ and val/")
    parser.add_argument("--image-size", type=int, default=160)
    parser.add_argument("--crop-ratio", type=float, default=1.0)
    parser.add_argument("--images", type=int, default=512, help="calibration images")
    parser.add_argument("--evaluation-images", type=int, default=0, help="of the validation split; 0 for all")
    parser.add_argument("--calibrator", help="the default of the library, where it is left out")
    parser.add_argument("--settings", required=True, help="with semicolons: target[/WxAy][/tensor]")
    parser.add_argument("--steps", default="all", help=f"all, or with semicolons of: {'; '.join(STEPS)}")
    parser.add_argument("--json", type=Path, required=True, help="rows are added to this file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
