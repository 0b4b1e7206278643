r"""What the quantizers of LiteRT and ExecuTorch lose on the same float network, and what this package loses there.

    pip install 'repquant[litert,executorch]' ai-edge-quantizer
    python benchmarks/phone_quantizers.py --weights repvgg-a0-custom-l2.pth --data imagenette160 --json phones.json

ai-edge-quantizer takes the float .tflite file that this package writes, with its recipe of int8 weights and int8
activations. ExecuTorch's flow (PT2E) takes the deploy form of the network, with the XNNPACKQuantizer and scales for
each channel. All calibrate on the same images; every file runs in its own runtime on the same validation images and is
compared with float, image by image. Seconds run from the float network in memory to the file, decoding included.
"""

import argparse
import json
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from repquant.atomic import replace_file
from repquant.bench.environment import environment
from repquant.cli.inputs import open_calibration, transform
from repquant.cli.options import CalibrationOptions, DataOptions
from repquant.data.datasets import open_split
from repquant.data.loading import Loader
from repquant.evaluate.stream import evaluate
from repquant.export.files import export_file
from repquant.graph.capture import capture
from repquant.models.checkpoints import load_model
from repquant.models.reparam import reparameterize
from repquant.quantize import quantize
from repquant.report.rows import measured_row
from repquant.runtimes.available import open_runtime
from repquant.runtimes.interface import Runtime
from repquant.runtimes.pytorch import PyTorchRuntime
from repquant.targets.executorch_file import importing
from repquant.targets.litert_file import read_litert

FLOAT = "float"
FIELDS = ("top1", "drop", "drop_ci95", "agreement", "kl", "sqnr_db")
Quantizer = Callable[[fx.GraphModule, "Images", Path], None]


class Images:
    """Calibration images, decoded anew each time that they are read."""

    def __init__(self, arguments: argparse.Namespace, options: DataOptions) -> None:
        chosen = CalibrationOptions(calibration_images=arguments.images)
        self._loader = open_calibration(chosen, options, options.data, 0).ranges

    def __iter__(self) -> Iterator[Tensor]:
        return (batch.images for batch in self._loader)


def repquant_litert(graph: fx.GraphModule, images: Images, path: Path) -> None:
    quantize(graph, images, target="litert").save(path)


def repquant_executorch(graph: fx.GraphModule, images: Images, path: Path) -> None:
    quantize(graph, images, target="executorch").save(path)


def ai_edge_quantizer(graph: fx.GraphModule, images: Images, path: Path) -> None:
    from ai_edge_quantizer import quantizer, recipe

    float_file = path.with_name("float.tflite")
    export_file(graph, float_file, inputs=("images",), outputs=("logits",))
    tool = quantizer.Quantizer(str(float_file), recipe.static_wi8_ai8())
    given = [{"images": image.permute(1, 2, 0)[None].contiguous().numpy()} for batch in images for image in batch]
    quantized = tool.quantize(tool.calibrate({"serving_default": given}))
    path.write_bytes(bytes(quantized.quantized_model))


def executorch_pt2e(graph: fx.GraphModule, images: Images, path: Path) -> None:
    with importing():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
            XNNPACKQuantizer,
            get_symmetric_quantization_config,
        )
        from executorch.exir import to_edge_transform_and_lower
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    example = next(iter(images))
    batch = torch.export.Dim("batch", min=1, max=1024)
    module = torch.export.export(graph, (example,), dynamic_shapes=({0: batch},), strict=False).module()
    settings = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    prepared = prepare_pt2e(module, settings)
    for given in images:
        prepared(given)
    program = torch.export.export(convert_pt2e(prepared), (example[:1],), strict=False)
    path.write_bytes(to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch().buffer)


QUANTIZERS: dict[str, tuple[str, str, Quantizer]] = {
    "repquant, litert": ("litert", ".tflite", repquant_litert),
    "ai-edge-quantizer": ("litert", ".tflite", ai_edge_quantizer),
    "repquant, executorch": ("executorch", ".pte", repquant_executorch),
    "ExecuTorch PT2E": ("executorch", ".pte", executorch_pt2e),
}


class OneByOne:
    """A runtime whose file takes one image, given several."""

    def __init__(self, runtime: Any) -> None:
        self.name, self.version, self._runtime = runtime.name, runtime.version, runtime

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.concatenate([self._runtime(image[None]) for image in images])


class Floats:
    """A runtime whose file gives integers, given as what they stand for."""

    def __init__(self, runtime: Any, path: Path) -> None:
        self.name, self.version, self._runtime = runtime.name, runtime.version, runtime
        graph = read_litert(path)
        self._output = graph.tensors[graph.outputs[0]]

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        given = self._runtime(images)
        if self._output.scale is None or self._output.zero_point is None:
            return given
        return (given.astype(np.float32) - self._output.zero_point) * self._output.scale


def main() -> None:
    arguments = parse()
    options = DataOptions(data=arguments.data, image_size=arguments.image_size, crop_ratio=arguments.crop_ratio)
    model = reparameterize(load_model(Path(arguments.weights), arguments.arch, arguments.num_classes))
    graph = capture(model, torch.zeros(2, 3, arguments.image_size, arguments.image_size))
    runtimes: dict[str, Runtime] = {FLOAT: PyTorchRuntime(graph)}
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, (name, (runtime, suffix, run)) in enumerate(QUANTIZERS.items()):
            path = Path(folder, f"{number}{suffix}")
            started = perf_counter()
            run(graph, Images(arguments, options), path)
            rows[name] = {"seconds": perf_counter() - started, "file_bytes": path.stat().st_size}
            engine = open_runtime(runtime, path)
            runtimes[name] = engine
            if run is ai_edge_quantizer:
                runtimes[name] = Floats(engine, path)
            elif run is executorch_pt2e:
                runtimes[name] = OneByOne(engine)
            print(json.dumps({"quantizer": name} | rows[name]), flush=True)
        source = open_split(arguments.data, "val")
        step = max(1, len(source) // arguments.evaluation_images) if arguments.evaluation_images else 1
        loader = Loader(source, transform(options), options.batch_size, indices=range(0, len(source), step))
        evaluation = evaluate(runtimes, loader, compare=[(name, FLOAT) for name in rows])
    for name, (runtime, _, _) in QUANTIZERS.items():
        row = measured_row(evaluation, name, runtime=runtime, runtime_version=runtimes[name].version, float_name=FLOAT)
        rows[name] |= {field: getattr(row, field) for field in FIELDS}
    result = {"images": evaluation.images, "calibration_images": arguments.images, "rows": rows}
    with replace_file(arguments.json) as temporary:
        temporary.write_text(json.dumps(result | {"environment": environment()}, indent=1) + "\n")
    print(table(rows))


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    columns = ("quantizer", "top-1 %", "drop [95 %]", "agree %", "KL x 1000", "SQNR dB", "seconds", "MB")
    lines = [f"| {' | '.join(columns)} |", "| --- |" + " ---: |" * (len(columns) - 1)]
    for name, row in rows.items():
        low, high = row["drop_ci95"]
        lines.append(
            f"| {name} | {row['top1']:.2f} | {row['drop']:.2f} [{low:.2f}, {high:.2f}] | {row['agreement']:.2f} "
            f"| {1000 * row['kl']:.2f} | {row['sqnr_db']:.1f} | {row['seconds']:.0f} | {row['file_bytes'] / 1e6:.2f} |"
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
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
