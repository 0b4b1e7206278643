"""Quantize the trained detector or segmenter in several ways, and print what each loses on the validation scenes.

python examples/detection/quantize.py detector --weights runs/detector-relu.pt --data /data/photographs
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import ends
import peers
import repquant as rq
from intervals import Bootstrap
from mean_ap import MeanAp
from mean_iou import MeanIou
from repquant.export.files import export_file
from repquant.methods.method import PtqMethod
from scenes import Scenes
from train import ACTIVATIONS, TASKS, load

METRICS = {"detector": MeanAp, "segmenter": MeanIou}
LAST = {
    "detector": [f"heads.{level}.{end}" for level in range(2) for end in ("scores", "boxes")],
    "segmenter": ["classes"],
}
PLAIN = {"calibrator": "max", "method": PtqMethod(equalization="none", rounding="nearest"), "rounding_images": 0}
TO_CALIBRATE, TO_CHOOSE = 1_000_000, 2_000_000  # numbers of training scenes, behind those that were trained on
MAX_DROP = 0.1  # points of mAP or mIoU that the search may lose

Network = Callable[[torch.Tensor], Any]
Row = tuple[str, str, Network]
"""A way to quantize, where it runs, and the network."""


def ours(name: str, int8: rq.Quantized, folder: Path) -> Iterator[Row]:
    """Yield a network in simulation and its file in ONNX Runtime."""
    yield name, "simulated", int8
    yield name, "ONNX Runtime", peers.running(int8.save(folder / "int8.onnx"))


def rows(options: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """Yield the float network, then all ways to quantize it."""
    training = Scenes("train", options.data)
    batches = [training.batch(range(start, start + 32))[0] for start in _starts(TO_CALIBRATE, options.calibration)]
    model = load(options.task, options.activation, options.weights)
    deploy = rq.reparameterize(model, batches[0])
    quantize = partial(rq.quantize, deploy, batches, target=options.target)
    last = LAST[options.task]

    yield "float", "PyTorch", deploy
    yield from ours("max ranges, nearest", quantize(**PLAIN), folder)
    yield from ours("max ranges, nearest; last in float", quantize(**PLAIN, keep_float=last), folder)
    default = quantize()
    yield from ours("repquant", default, folder)
    yield from ours("repquant; last in float", quantize(keep_float=last), folder)
    metric = METRICS[options.task](training, range(TO_CHOOSE, TO_CHOOSE + options.validation))
    found = rq.search(deploy, batches, target=options.target, max_drop=MAX_DROP, evaluate=metric)
    print(found.outcome.reason, file=sys.stderr)
    yield from ours("repquant, search", found, folder)

    if options.target == "onnxruntime":
        yield from others(deploy, batches, folder)
        if options.task == "detector":
            yield from ends_in_integers(model, default, batches, folder)


def others(deploy: torch.fx.GraphModule, batches: list[torch.Tensor], folder: Path) -> Iterator[Row]:
    """Yield the files of other quantizers."""
    float_file = folder / "float.onnx"
    export_file(deploy, float_file)
    peers.with_onnxruntime(float_file, folder / "ort.onnx", batches)
    yield "quantize_static", "ONNX Runtime", peers.running(folder / "ort.onnx")
    if find_spec("nncf"):
        peers.with_nncf(float_file, folder / "nncf.onnx", batches)
        yield "NNCF", "ONNX Runtime", peers.running(folder / "nncf.onnx")


def ends_in_integers(
    model: torch.nn.Module, int8: rq.Quantized, batches: list[torch.Tensor], folder: Path
) -> Iterator[Row]:
    """Yield what it costs that outputs leave in 8 bits, each on a grid of its own or all on one."""
    for form, network in (("logarithms, logits", int8), ("pixels, probabilities", ends.in_pixels(int8))):
        for shared, grids in ((False, "own grids"), (True, "one grid")):
            on_grids = ends.rounded(network, batches, shared=shared)
            yield (
                f"repquant; {form} in 8 bits, {grids}",
                "simulated",
                on_grids if network is int8 else ends.raw(on_grids),
            )
    float_file, path = folder / "one.onnx", folder / "ort-one.onnx"
    export_file(rq.reparameterize(ends.Concatenated(model), batches[0]), float_file)
    peers.with_onnxruntime(float_file, path, batches)
    concatenated = peers.running(path)
    yield "quantize_static; boxes and scores concatenated", "ONNX Runtime", lambda x: ends.parted(concatenated(x))


@torch.inference_mode()
def table(options: argparse.Namespace) -> Iterator[str]:
    """Yield the lines of the table as they are measured."""
    metric = METRICS[options.task](Scenes("val", options.data), range(options.validation))
    name = {"detector": "mAP", "segmenter": "mIoU"}[options.task]
    yield f"| method | runs in | {name} | lost | 95 % interval | as simulated % |"
    yield "| --- | --- | ---: | ---: | --- | ---: |"
    bootstrap = simulated = None
    with TemporaryDirectory() as folder:
        for method, where, network in rows(options, Path(folder)):
            results = metric.results(network)
            if bootstrap is None:
                bootstrap, loss = Bootstrap(results, options.validation), "- | -"
            else:
                loss = "{:.2f} | [{:.2f}, {:.2f}]".format(*bootstrap.drop(results))
            is_file_of_ours = where == "ONNX Runtime" and simulated and simulated[0] == method
            parity = f"{simulated[1].alike(results):.2f}" if is_file_of_ours else "-"
            simulated = (method, results) if where == "simulated" else None
            yield f"| {method} | {where} | {results.score():.2f} | {loss} | {parity} |"


def _starts(first: int, count: int) -> range:
    return range(first, first + count, 32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--activation", choices=ACTIVATIONS, default="relu")
    parser.add_argument("--weights", type=Path, required=True, help="checkpoint of train.py")
    parser.add_argument("--data", type=Path, help="as for train.py")
    parser.add_argument("--target", choices=("onnxruntime", "tensorrt"), default="onnxruntime")
    parser.add_argument("--calibration", type=int, default=256, help="training scenes to calibrate on")
    parser.add_argument("--validation", type=int, default=500, help="validation scenes")
    for line in table(parser.parse_args()):
        print(line, flush=True)


if __name__ == "__main__":
    main()
