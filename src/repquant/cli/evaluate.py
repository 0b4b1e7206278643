"""Measure top-1, top-5 and throughput of a model on labelled images.

The float checkpoint runs in PyTorch (--arch and --weights), an ONNX file in ONNX Runtime or OpenVINO (--model).
Under torchrun the processes share the images; every one counts once.

  torchrun --nproc-per-node 8 -m repquant evaluate --arch RepVGG-A0 --weights A0.pth --data FOLDER --device cuda
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from repquant.cli.console import finish, progress, say, show_configuration
from repquant.cli.options import DataOptions, ModelOptions, option, split_names
from repquant.errors import InputError
from repquant.option_ranges import CLASSES

if TYPE_CHECKING:
    import torch

    from repquant.runtimes.interface import Runtime
    from repquant.train.distributed import Ranks


@dataclass(frozen=True, kw_only=True)
class Options(DataOptions):
    """Options of `repquant evaluate`."""

    runtimes: str = option("what executes the model: pytorch, onnxruntime, openvino, tensorrt, with commas", "pytorch")
    model: str = option("ONNX file, for all but pytorch; an engine for tensorrt", "")
    arch: str = option("architecture of the checkpoint, for pytorch", "")
    weights: str = option("checkpoint for pytorch; 'builtin' for the one that ships", "")
    num_classes: int = option("number of classes of the model", 1000, CLASSES)
    split: str = option("val or train", "val")
    device: str = option("where pytorch runs: cpu or cuda", "cpu")


def run(options: Options) -> None:
    """Run the verb."""
    from repquant.graph.devices import full_precision
    from repquant.train.distributed import started_by_torchrun

    with started_by_torchrun(options.device) as (ranks, device), full_precision(device):
        _evaluate(options, ranks, device)


def _evaluate(options: Options, ranks: Ranks, device: torch.device) -> None:
    from repquant.cli.inputs import open_loader
    from repquant.evaluate.accuracy import accuracy
    from repquant.evaluate.stream import Evaluation, evaluate

    if ranks.is_main:
        show_configuration("evaluate", options)
    if options.split not in ("train", "val"):
        raise InputError(f"split {options.split!r} was given; allowed are val and train")
    engines = _open_engines(options, ranks, device)
    loader = open_loader(options, "train" if options.split == "train" else "val", options.num_classes, ranks)
    with progress("evaluate", loader.images, shown=ranks.is_main) as advance:
        part = evaluate(engines, loader, num_classes=options.num_classes, on_images=advance)
    evaluation = Evaluation.concatenate(ranks.gather(part))
    skipped = sum(ranks.gather(len(loader.skipped)))
    if not ranks.is_main:
        return
    results = []
    for name, predictions in evaluation.predictions.items():
        measured = accuracy(predictions)
        seconds = evaluation.seconds[name]
        results.append(
            {
                "runtime": name,
                "images": predictions.images,
                "top1": None if measured is None else round(measured.top1, 4),
                "top1_ci95": None if measured is None else [round(end, 4) for end in measured.top1_ci95],
                "top5": None if measured is None or measured.top5 is None else round(measured.top5, 4),
                "seconds": round(seconds, 3),
                "images_per_second": round(predictions.images / seconds, 2),
            }
        )
    for result in results:
        say(", ".join(f"{key} {value}" for key, value in result.items()))
    finish({"split": options.split, "skipped": skipped, "results": results})


def _open_engines(options: Options, ranks: Ranks, device: torch.device) -> dict[str, Runtime]:
    """Open what is asked for, by the engine's name."""
    import torch

    from repquant.cli.inputs import load_network
    from repquant.runtimes.available import ENGINES, installed, open_classifier, require
    from repquant.runtimes.pytorch import PyTorchRuntime

    # An engine takes all cores by itself; of several processes each keeps to what torchrun gives it.
    threads = torch.get_num_threads() if ranks.world_size > 1 else None
    engines: dict[str, Runtime] = {}
    for name in split_names(options.runtimes, tuple(ENGINES), "runtimes", installed()):
        require(name)
        if name == "pytorch":
            if not (options.weights and options.arch):
                raise InputError("the runtime pytorch runs a checkpoint; pass --arch and --weights")
            checkpoint = ModelOptions(arch=options.arch, num_classes=options.num_classes, weights=options.weights)
            engines[name] = PyTorchRuntime(load_network(checkpoint).to(device))
        else:
            if not options.model:
                raise InputError(f"the runtime {name} runs a file; pass --model")
            engines[name] = open_classifier(name, Path(options.model), threads)
    return engines
