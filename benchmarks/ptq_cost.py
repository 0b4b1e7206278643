"""What calibration costs, beside ONNX Runtime's own quantizer on the same model and images, in one run.

    python benchmarks/ptq_cost.py --weights repvgg-a0-custom-l2.pth --data imagenette160 [--markdown FILE]

1. The calibration pass against a plain float forward over the same images with the same batch size, alternating.
2. All range searches over all layers together, on one core.
3. Peak memory of the default method with few and with many images, for calibration and for rounding alike.
4. `onnxruntime.quantization.quantize_static` (min-max, entropy; QDQ, int8 weights per channel, uint8 activations)
   on the model that its `quant_pre_process` prepared: seconds, peak memory, accuracy, beside this project's
   calibrators for the target `onnxruntime`. ONNX Runtime executes all of them.

Each measurement runs in a process of its own. Images are in memory for 1 and decoded on the way for 3 and 4. Seconds in
4 run from the float model (a module here, an ONNX file there) to the INT8 file. `--quick` shows in a minute or two that
everything runs; its figures mean little. The last line on stdout is one line of JSON.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import fx

from fresh_process import alone, peak_mb
from repquant.bench.environment import environment, machine_lines
from repquant.cli.options import MethodOptions
from repquant.data.calibration import select
from repquant.data.datasets import Split, open_split
from repquant.data.loading import Loader
from repquant.data.transforms import EvalTransform
from repquant.evaluate.stream import evaluate
from repquant.export.onnx import INPUT_NAME, OUTPUT_NAME, export_graph
from repquant.graph.capture import capture
from repquant.graph.layout import find_layout
from repquant.methods.calibrate import activation_ranges, collect_histograms
from repquant.methods.ptq import PtqMethod, prepare
from repquant.models.checkpoints import load_model
from repquant.models.reparam import reparameterize
from repquant.models.zoo import builtin_weights
from repquant.numerics.ranges import CALIBRATORS
from repquant.quantize import collect
from repquant.report.rows import measured_row
from repquant.runtimes.cpu import int8_support
from repquant.runtimes.onnxruntime import OnnxRuntime
from repquant.targets.target import Target, resolve_target
from result_tables import Table, markdown_lines, show

FLOAT = "float"
QUICK = {"images": 64, "many_images": 256, "evaluation_images": 256, "repeats": 2}


def main() -> None:
    arguments = parse()
    load = os.getloadavg()[0]
    result: dict[str, Any] = {"images": arguments.images, "batch_size": arguments.batch_size}
    result |= alone(measure_time, arguments)
    result["peak_mb"] = {
        str(images): alone(measure_memory, arguments, images) for images in (arguments.images, arguments.many_images)
    }
    with tempfile.TemporaryDirectory() as folder:
        result["quantizers"] = compare_quantizers(arguments, Path(folder))
    result |= {"load_average_before": round(load, 2), "environment": environment()}
    show(tables(result))
    if arguments.markdown:
        arguments.markdown.write_text(markdown(result), encoding="utf-8")
    print(json.dumps(result))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="RepVGG-A0")
    parser.add_argument("--num-classes", type=int, default=10)
    parser.add_argument("--weights", required=True, help="checkpoint; 'builtin' for the one that ships")
    parser.add_argument("--data", required=True, help="folder with train/ and val/; 'builtin' for the set that ships")
    parser.add_argument("--image-size", type=int, default=160)
    parser.add_argument("--crop-ratio", type=float, default=1.0)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--images", type=int, default=512, help="calibration images; whole batches")
    parser.add_argument("--many-images", type=int, default=4096, help="for the memory of a long calibration")
    parser.add_argument("--evaluation-images", type=int, default=0, help="of the validation split; 0 for all")
    parser.add_argument("--repeats", type=int, default=7, help="of the timings under 1 and 2; medians are reported")
    parser.add_argument("--quick", action="store_true", help=f"run with {QUICK}")
    parser.add_argument("--markdown", type=Path, help="also write the tables to this file")
    arguments = parser.parse_args()
    if arguments.quick:
        vars(arguments).update(QUICK)
    if arguments.images % arguments.batch_size:
        parser.error("--images must be a multiple of --batch-size: quantize_static's entropy needs batches of one size")
    return arguments


def float_graph(arguments: argparse.Namespace) -> fx.GraphModule:
    path = builtin_weights() if arguments.weights == "builtin" else Path(arguments.weights)
    model = reparameterize(load_model(path, arguments.arch, arguments.num_classes))
    return capture(model, torch.zeros(2, 3, arguments.image_size, arguments.image_size))


def loader(arguments: argparse.Namespace, split: Split, images: int) -> Loader:
    """Return the batches of the first images of the calibration's draw; of all images where `images` is 0."""
    source = open_split(arguments.data, split)
    transform = EvalTransform(image_size=arguments.image_size, crop_ratio=arguments.crop_ratio)
    chosen = select(source, images).indices if images else None
    return Loader(source, transform, arguments.batch_size, indices=chosen)


def calibration_images(arguments: argparse.Namespace, images: int) -> Iterator[torch.Tensor]:
    return (batch.images for batch in loader(arguments, "train", images))


def ort_target() -> Target:
    return resolve_target("onnxruntime", fast_int8_dot=int8_support().safe)


# 1 and 2: time


def measure_time(arguments: argparse.Namespace) -> dict[str, float]:
    graph, batches = float_graph(arguments), list(calibration_images(arguments, arguments.images))
    layout = find_layout(graph, ort_target())

    def forward() -> None:
        with torch.inference_mode():
            for batch in batches:
                graph(batch)

    def calibrate() -> None:
        collect_histograms(graph, layout, batches)

    timings = alternate({"forward": forward, "calibration": calibrate}, arguments.repeats)
    wall, cpu = ({name: statistics.median(clock) for name, clock in clocks.items()} for clocks in timings)
    return {
        "forward_seconds": wall["forward"],
        "calibration_seconds": wall["calibration"],
        "calibration_over_forward": wall["calibration"] / wall["forward"],
        "calibration_over_forward_cpu_time": cpu["calibration"] / cpu["forward"],
        "searches_one_core_seconds": measure_searches(collect_histograms(graph, layout, batches), arguments.repeats),
    }


def alternate(
    functions: Mapping[str, Callable[[], None]], repeats: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Call the functions in turn, after one round to warm up, and return the wall and CPU seconds of each call."""
    wall: dict[str, list[float]] = {name: [] for name in functions}
    cpu: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in range(repeats + 1):
        for name, function in functions.items():
            started, started_cpu = perf_counter(), process_time()
            function()
            if repeat > 0:
                wall[name].append(perf_counter() - started)
                cpu[name].append(process_time() - started_cpu)
    return wall, cpu


def measure_searches(histograms: Mapping[str, Any], repeats: int) -> float:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    target = ort_target()

    def search() -> None:
        for calibrator in CALIBRATORS:
            activation_ranges(calibrator, histograms, target)

    wall, _ = alternate({"search": search}, repeats)
    return statistics.median(wall["search"])


# 3: memory


def measure_memory(arguments: argparse.Namespace, images: int) -> float:
    """Quantize by the default method, round for all of the images too, and return the peak memory."""
    quantize_once(arguments, float_graph(arguments), ort_target(), images, ("mse",), PtqMethod(), images)
    return peak_mb()


# 4: the comparison


def compare_quantizers(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    alone(export_float, arguments, folder)
    rows: list[dict[str, Any]] = []
    for label, quantizer in QUANTIZERS.items():
        try:
            rows.append({"quantizer": label} | alone(quantizer, arguments, folder, label))
        except Exception as error:  # for example, killed for the memory that it takes
            rows.append({"quantizer": label, "failed": f"{type(error).__name__}: {error}"})
    accuracy = alone(measure_accuracy, arguments, folder, [row["quantizer"] for row in rows if "failed" not in row])
    return [row | accuracy.get(row["quantizer"], {}) for row in rows]


def model_path(folder: Path, label: str) -> Path:
    return folder / f"{label.replace(' ', '-')}.onnx"


def export_float(arguments: argparse.Namespace, folder: Path) -> None:
    export(float_graph(arguments), model_path(folder, FLOAT))


def export(graph: fx.GraphModule, path: Path, target: Target | None = None) -> None:
    export_graph(graph, path, target, inputs=(INPUT_NAME,), outputs=(OUTPUT_NAME,))


def quantize_with_repquant(
    arguments: argparse.Namespace, folder: Path, label: str, *, calibrator: str, method: PtqMethod, rounding_images: int
) -> dict[str, float]:
    graph, target = float_graph(arguments), ort_target()
    started = perf_counter()
    quantized = quantize_once(arguments, graph, target, arguments.images, (calibrator,), method, rounding_images)
    before_export = perf_counter()
    export(quantized, model_path(folder, label), target)
    ended = perf_counter()
    return {"seconds": ended - started, "export_seconds": ended - before_export, "peak_mb": peak_mb()}


def quantize_once(
    arguments: argparse.Namespace,
    graph: fx.GraphModule,
    target: Target,
    images: int,
    calibrators: Sequence[str],
    method: PtqMethod,
    rounding_images: int,
) -> fx.GraphModule:
    """Do what `repquant ptq` does up to the export, and return the model of the last calibrator."""
    prepared = prepare(graph, method, target, calibration_images(arguments, images))
    calibrated = collect(prepared, calibration_images(arguments, images), target, method, ())
    for calibrator in calibrators:
        few = min(rounding_images, images)
        rounding = calibration_images(arguments, few) if few else ()
        quantized = calibrated.round(calibrated.plan(calibrator), rounding).simulated()
    return quantized


def quantize_with_onnxruntime(
    arguments: argparse.Namespace, folder: Path, label: str, *, method: quantization.CalibrationMethod
) -> dict[str, float]:
    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = calibration_images(arguments, arguments.images)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {INPUT_NAME: batch.numpy()}

    prepared = model_path(folder, f"{label} prepared")
    started = perf_counter()
    with redirect_stdout(sys.stderr):
        quant_pre_process(model_path(folder, FLOAT), prepared)
        quantization.quantize_static(
            prepared,
            model_path(folder, label),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            reduce_range=not int8_support().safe,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=method,
        )
    return {"seconds": perf_counter() - started, "peak_mb": peak_mb()}


Quantizer = Callable[[argparse.Namespace, Path, str], dict[str, float]]
QUANTIZERS: dict[str, Quantizer] = {
    "ONNX Runtime min-max": partial(quantize_with_onnxruntime, method=quantization.CalibrationMethod.MinMax),
    "ONNX Runtime entropy": partial(quantize_with_onnxruntime, method=quantization.CalibrationMethod.Entropy),
}
for name in CALIBRATORS:
    QUANTIZERS[f"repquant {name}, ranges alone"] = partial(
        quantize_with_repquant,
        calibrator=name,
        method=PtqMethod(equalization="none", rounding="nearest"),
        rounding_images=0,
    )
    QUANTIZERS[f"repquant {name}"] = partial(
        quantize_with_repquant, calibrator=name, method=PtqMethod(), rounding_images=MethodOptions.rounding_images
    )


def measure_accuracy(arguments: argparse.Namespace, folder: Path, labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    engines = {label: OnnxRuntime(model_path(folder, label)) for label in (FLOAT, *labels)}
    evaluation = evaluate(
        engines, loader(arguments, "val", arguments.evaluation_images), compare=[(label, FLOAT) for label in labels]
    )
    measured = {}
    for label in labels:
        engine = engines[label]
        row = measured_row(evaluation, label, runtime=engine.name, runtime_version=engine.version, float_name=FLOAT)
        measured[label] = {
            "top1": row.top1,
            "drop": row.drop,
            "drop_ci95": row.drop_ci95,
            "agreement": row.agreement,
            "kl": row.kl,
            "images_per_second": row.images_per_second,
            "file_bytes": model_path(folder, label).stat().st_size,
        }
    return measured


# What a person reads

COST_COLUMNS = ("cost", "measured", "target")
QUANTIZER_COLUMNS = ("quantizer", "drop [95 %]", "agreement %", "KL x 1000", "seconds", "of it export", "peak MB")


def cost_rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    ratio, cpu_ratio = result["calibration_over_forward"], result["calibration_over_forward_cpu_time"]
    few, many = result["peak_mb"].values()
    return [
        ("calibration pass / plain forward", f"{ratio:.2f} (CPU time: {cpu_ratio:.2f})", "at most 1.1"),
        ("four searches, all layers, one core", f"{result['searches_one_core_seconds']:.2f} s", "at most 3 s"),
        (f"peak memory, {' / '.join(result['peak_mb'])} images", f"{few:.0f} / {many:.0f} MB", "equal"),
    ]


def quantizer_rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows = []
    for row in result["quantizers"]:
        if "failed" in row:
            rows.append((row["quantizer"], row["failed"], *[""] * (len(QUANTIZER_COLUMNS) - 2)))
            continue
        low, high = row["drop_ci95"]
        rows.append(
            (
                row["quantizer"],
                f"{row['drop']:.2f} [{low:.2f}, {high:.2f}]",
                f"{row['agreement']:.2f}",
                f"{1000 * row['kl']:.2f}",
                f"{row['seconds']:.1f}",
                f"{row['export_seconds']:.1f}" if "export_seconds" in row else "-",
                f"{row['peak_mb']:.0f}",
            )
        )
    return rows


def tables(result: Mapping[str, Any]) -> list[Table]:
    return [(COST_COLUMNS, cost_rows(result)), (QUANTIZER_COLUMNS, quantizer_rows(result))]


def markdown(result: Mapping[str, Any]) -> str:
    lines = [
        "# What calibration costs",
        "",
        f"`python benchmarks/ptq_cost.py`, {result['images']} calibration images, batch {result['batch_size']}.",
        "",
    ]
    lines += markdown_lines(tables(result))
    lines += [
        "Each row is a process of its own. Seconds run from the float model to the INT8 file and include decoding.",
        "Ranges alone: weights rounded to the nearest, nothing else; the others are the default of `repquant ptq`.",
        "",
        *machine_lines(result["environment"], result["load_average_before"]),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
