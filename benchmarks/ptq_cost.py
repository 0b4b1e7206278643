"""What calibration costs, beside ONNX Runtime's own quantizer on the same model and images, in one run.

    python benchmarks/ptq_cost.py --weights repvgg-a0-custom-l2.pth --data imagenette160 [--markdown FILE]

1. The calibration pass against a plain float forward over the same images with the same batch size, alternating.
2. All range searches over all layers together, on one core.
3. Peak memory with few and with many calibration images, each in a process of its own.
4. `onnxruntime.quantization.quantize_static` (min-max, entropy; QDQ, per-channel int8 weights, uint8 activations):
   seconds, peak memory, accuracy, beside this project's calibrators for the target `onnxruntime`.

The last line on stdout is one line of JSON.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import torch
from rich.console import Console
from rich.table import Table

from repquant.bench.environment import environment
from repquant.data.calibration import select
from repquant.data.datasets import open_split
from repquant.data.loading import Loader
from repquant.data.transforms import EvalTransform
from repquant.evaluate.compare import fidelity, paired_drop
from repquant.evaluate.stream import evaluate
from repquant.export.onnx import INPUT_NAME, export_onnx
from repquant.models.checkpoints import load_model
from repquant.models.reparam import reparameterize
from repquant.numerics.ranges import CALIBRATORS
from repquant.quant.bias_correction import correct_biases
from repquant.quant.calibrate import activation_ranges, collect_histograms
from repquant.quant.convert import quantize_model
from repquant.quant.target import resolve_target
from repquant.runtimes.onnxruntime import OnnxRuntime
from repquant.runtimes.pytorch import PyTorchRuntime

ORT_METHODS = {"min-max": "MinMax", "entropy": "Entropy"}
MEGABYTE = 1e6


def main() -> None:
    arguments = parse()
    if arguments.phase:
        run_phase(arguments)
        return
    model, calibration = load_float(arguments), calibration_loader(arguments, arguments.images)
    batches = [batch.images for batch in calibration]
    result = {"environment": environment(), "images": arguments.images, "batch_size": arguments.batch_size}
    result |= measure_pass(model, batches, arguments.repeats)
    result["searches_one_core_seconds"] = measure_searches(collect_histograms(model, batches))
    del batches
    few, many = (in_process(arguments, "collect", images) for images in (arguments.images, arguments.many_images))
    result["peak_mb"] = {str(arguments.images): few["peak_mb"], str(arguments.many_images): many["peak_mb"]}
    with tempfile.TemporaryDirectory() as folder:
        result["quantizers"] = compare_quantizers(arguments, Path(folder))
    show(result)
    if arguments.markdown:
        arguments.markdown.write_text(markdown(result), encoding="utf-8")
    print(json.dumps(result))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="RepVGG-A0")
    parser.add_argument("--num-classes", type=int, default=10)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--image-size", type=int, default=160)
    parser.add_argument("--crop-ratio", type=float, default=1.0)
    parser.add_argument("--images", type=int, default=512, help="calibration images")
    parser.add_argument("--many-images", type=int, default=4096, help="for the memory of a long calibration")
    parser.add_argument("--evaluation-images", type=int, default=0, help="of the validation split; 0 for all")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--markdown", type=Path, help="also write the tables to this file")
    parser.add_argument("--phase", help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def load_float(arguments: argparse.Namespace) -> torch.nn.Module:
    return reparameterize(load_model(arguments.weights, arguments.arch, arguments.num_classes))


def calibration_loader(arguments: argparse.Namespace, images: int) -> Loader:
    source = open_split(arguments.data, "train")
    transform = EvalTransform(image_size=arguments.image_size, crop_ratio=arguments.crop_ratio)
    return Loader(source, transform, arguments.batch_size, indices=select(source, images).indices)


@torch.inference_mode()
def measure_pass(model: torch.nn.Module, batches: list[torch.Tensor], repeats: int) -> dict[str, float]:
    forward, collect = [], []
    model(batches[0])
    collect_histograms(model, batches[:1])
    for _ in range(repeats):
        started = perf_counter()
        for batch in batches:
            model(batch)
        forward.append(perf_counter() - started)
        started = perf_counter()
        collect_histograms(model, batches)
        collect.append(perf_counter() - started)
    return {
        "forward_seconds": statistics.median(forward),
        "calibration_seconds": statistics.median(collect),
        "calibration_over_forward": statistics.median(c / f for c, f in zip(collect, forward, strict=True)),
    }


def measure_searches(histograms: dict) -> float:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    target = resolve_target("onnxruntime")
    started = perf_counter()
    for calibrator in CALIBRATORS:
        activation_ranges(calibrator, histograms, target)
    seconds = perf_counter() - started
    torch.set_num_threads(threads)
    return seconds


def in_process(arguments: argparse.Namespace, phase: str, images: int, output: Path | None = None) -> dict:
    """Run a phase in a process of its own and return what it printed last."""
    command = [sys.executable, __file__, "--phase", phase, "--images", images, "--weights", arguments.weights]
    for name in ("arch", "num_classes", "data", "image_size", "crop_ratio", "batch_size"):
        command += [f"--{name.replace('_', '-')}", getattr(arguments, name)]
    command += ["--output", output] if output else []
    done = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def run_phase(arguments: argparse.Namespace) -> None:
    started = perf_counter()
    if arguments.phase == "collect":
        model = load_float(arguments)
        collect_histograms(model, (batch.images for batch in calibration_loader(arguments, arguments.images)))
    elif arguments.phase.startswith("ort-"):
        quantize_with_onnxruntime(arguments)
    else:
        quantize_with_repquant(arguments)
    seconds = perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MEGABYTE
    print(json.dumps({"seconds": seconds, "peak_mb": peak}))


def quantize_with_repquant(arguments: argparse.Namespace) -> None:
    """Quantize with the calibrator that the phase names; biases are corrected as `repquant ptq` does by default."""
    model, target = load_float(arguments), resolve_target("onnxruntime")
    images = (batch.images for batch in calibration_loader(arguments, arguments.images))
    histograms = collect_histograms(model, images)
    calibrator, _, corrected = arguments.phase.partition("+")
    ranges = activation_ranges(calibrator, histograms, target)
    if corrected:
        images = (batch.images for batch in calibration_loader(arguments, min(256, arguments.images)))
        model = correct_biases(model, quantize_model(model, ranges, target), images)
    export_onnx(quantize_model(model, ranges, target), arguments.output, arguments.image_size)


def quantize_with_onnxruntime(arguments: argparse.Namespace) -> None:
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(calibration_loader(arguments, arguments.images))

        def get_next(self) -> dict | None:
            batch = next(self.batches, None)
            return None if batch is None else {INPUT_NAME: batch.images.numpy()}

    source = arguments.output.with_suffix(".float.onnx")
    prepared = arguments.output.with_suffix(".prepared.onnx")
    export_onnx(load_float(arguments), source, arguments.image_size)
    quant_pre_process(source, prepared)
    quantization.quantize_static(
        prepared,
        arguments.output,
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        calibrate_method=quantization.CalibrationMethod[ORT_METHODS[arguments.phase.removeprefix("ort-")]],
    )


def compare_quantizers(arguments: argparse.Namespace, folder: Path) -> list[dict]:
    rows = []
    phases = [(f"ONNX Runtime {name}", f"ort-{name}") for name in ORT_METHODS]
    for name in CALIBRATORS:
        phases += [(f"repquant {name}, biases as they are", name), (f"repquant {name}", f"{name}+corrected")]
    engines = {"float": PyTorchRuntime(load_float(arguments))}
    for label, phase in phases:
        path = folder / f"{phase}.onnx"
        try:
            rows.append({"quantizer": label} | in_process(arguments, phase, arguments.images, path))
        except subprocess.CalledProcessError as error:
            rows.append({"quantizer": label, "failed": f"exit status {error.returncode}"})
            continue
        engines[label] = OnnxRuntime(path)
    source = open_split(arguments.data, "val")
    transform = EvalTransform(image_size=arguments.image_size, crop_ratio=arguments.crop_ratio)
    chosen = select(source, arguments.evaluation_images).indices if arguments.evaluation_images else None
    loader = Loader(source, transform, arguments.batch_size, indices=chosen)
    evaluation = evaluate(engines, loader, compare=[(name, "float") for name in engines if name != "float"])
    reference = evaluation.predictions["float"].correct
    for row in rows:
        if "failed" in row:
            continue
        close = fidelity(evaluation.differences[row["quantizer"], "float"])
        drop = paired_drop(reference, evaluation.predictions[row["quantizer"]].correct)
        row |= {"drop": drop.points, "drop_ci95": drop.ci95, "agreement": close.agreement, "kl": close.kl}
    return rows


def cost_rows(result: dict) -> list[tuple[str, str, str]]:
    few, many = result["peak_mb"].values()
    images = list(result["peak_mb"])
    return [
        ("calibration pass / plain forward", f"{result['calibration_over_forward']:.2f}", "at most 1.3"),
        ("four searches, all layers, one core", f"{result['searches_one_core_seconds']:.2f} s", "at most 3 s"),
        (f"peak memory, {images[0]} / {images[1]} images", f"{few:.0f} / {many:.0f} MB", "equal"),
    ]


def quantizer_rows(result: dict) -> list[tuple[str, ...]]:
    return [
        (row["quantizer"], *(["failed"] * 5))
        if "failed" in row
        else (
            row["quantizer"],
            f"{row['drop']:.2f} [{row['drop_ci95'][0]:.2f}, {row['drop_ci95'][1]:.2f}]",
            f"{row['agreement']:.2f}",
            f"{1000 * row['kl']:.2f}",
            f"{row['seconds']:.1f}",
            f"{row['peak_mb']:.0f}",
        )
        for row in result["quantizers"]
    ]


COST_COLUMNS = ("cost", "measured", "target")
QUANTIZER_COLUMNS = ("quantizer", "drop [95 %]", "agreement %", "KL x 1000", "seconds", "peak MB")


def show(result: dict) -> None:
    console = Console(width=120)
    for columns, rows in ((COST_COLUMNS, cost_rows(result)), (QUANTIZER_COLUMNS, quantizer_rows(result))):
        table = Table(*columns)
        for row in rows:
            table.add_row(*row)
        console.print(table)


def markdown(result: dict) -> str:
    lines = [
        "# What calibration costs",
        "",
        f"`python benchmarks/ptq_cost.py`, {result['images']} calibration images.",
        "",
    ]
    for columns, rows in ((COST_COLUMNS, cost_rows(result)), (QUANTIZER_COLUMNS, quantizer_rows(result))):
        lines += [f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows)] + [""]
    machine = result["environment"]
    lines += [f"- {machine['cpu']}, {machine['cores']} cores ({', '.join(machine['cpu_int8_flags'])})"]
    lines += [f"- {', '.join(f'{name} {version}' for name, version in machine['packages'].items())}", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
