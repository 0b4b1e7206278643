"""Measure top-1, top-5 and throughput of a model on labelled images.

A checkpoint runs in PyTorch (--weights), a file in the runtime that reads it (--model). Where a file says how its
images are prepared, that is read off it.
Under torchrun the processes share the images; every one counts once.

  torchrun --nproc-per-node 8 -m repquant evaluate --arch RepVGG-A0 --weights A0.pth --data FOLDER --device cuda
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from repquant.choices import ONNX_RUNTIMES, Device, Split
from repquant.cli.console import finish, progress, say, show_configuration
from repquant.cli.options import RUNTIME_NAMES, WORKERS, DataOptions, ModelOptions
from repquant.cli.parser import TripleError, triple
from repquant.errors import InputError
from repquant.option_ranges import BATCH, CLASSES, CROP_RATIO, IMAGE_SIDE, Numbers, option

if TYPE_CHECKING:
    import torch

    from repquant.export.file_facts import FileFacts
    from repquant.runtimes.interface import Runtime
    from repquant.train.distributed import Ranks

EXAMPLE = "repquant evaluate --model runs/a0/mse.onnx --runtimes onnxruntime,openvino --data FOLDER"

_READERS = {
    ".engine": ("tensorrt",),
    ".plan": ("tensorrt",),
    ".tflite": ("litert",),
    ".pte": ("executorch",),
    ".param": ("ncnn",),
}
"""Of files that are no ONNX files: what runs them."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `repquant evaluate`."""

    data: str = option("folder with class folders in train/ and val/; 'builtin' for the set that ships")
    runtimes: str = option(
        "what executes the model; default: pytorch for --weights, and for --model the first other one installed",
        "",
        RUNTIME_NAMES,
    )
    model: str = option(
        "ONNX file, for all but pytorch; for tensorrt an engine, for litert .tflite, executorch .pte, ncnn .param", ""
    )
    arch: str = option("architecture of the checkpoint, for pytorch; default: read off it", "")
    weights: str = option("checkpoint for pytorch; 'builtin' for the one that ships", "")
    num_classes: int = option("number of classes; 0: as the model says", 0, Numbers(0, CLASSES.most))
    image_size: int = option(
        "side of the square images in pixels; 0: as the file says, else 224", 0, Numbers(0, IMAGE_SIDE.most)
    )
    crop_ratio: float = option(
        "image size / resized shorter side; 0: as the file says, else 0.875",
        0.0,
        Numbers(CROP_RATIO.least, CROP_RATIO.most, or_zero=True),
    )
    mean: str = option("channel means, with commas; default: the file's, else ImageNet's", "")
    std: str = option("channel standard deviations, with commas; default: the file's, else ImageNet's", "")
    batch_size: int = option("images a batch", 32, BATCH)
    workers: int = option("processes that decode images; 0 decodes in the main process", 0, WORKERS)
    skip_unreadable: bool = option("go on without images that can't be read, and count them", False)
    split: Split = option("which of the two folders of images", "val")
    device: Device = option("where pytorch runs", "cpu")


def run(options: Options) -> None:
    """Run the verb."""
    from repquant.graph.devices import full_precision
    from repquant.train.distributed import started_by_torchrun

    with started_by_torchrun(options.device) as (ranks, device), full_precision(device):
        _evaluate(options, ranks, device)


def _evaluate(options: Options, ranks: Ranks, device: torch.device) -> None:
    from repquant.cli.inputs import identified, open_loader
    from repquant.cli.recording import hardly_better_than_chance
    from repquant.evaluate.accuracy import accuracy
    from repquant.evaluate.stream import Evaluation, evaluate
    from repquant.export.file_facts import FileFacts, read_file_facts

    if ranks.is_main:
        show_configuration("evaluate", options)
    is_onnx = options.model and Path(options.model).suffix not in _READERS
    told = read_file_facts(Path(options.model)) if is_onnx else FileFacts()
    images = _images(options, told)
    if ranks.is_main and (facts := _words(told)):
        say(f"{options.model} says: {facts}")
    checkpoint = ModelOptions(arch=options.arch, num_classes=options.num_classes, weights=options.weights)
    checkpoint = identified(checkpoint)
    engines = _open_engines(options, checkpoint, ranks, device)
    classes = options.num_classes or len(told.classes or ()) or checkpoint.num_classes
    loader = open_loader(images, options.split, classes, ranks)
    with progress("evaluate", loader.images, shown=ranks.is_main) as advance:
        part = evaluate(engines, loader, num_classes=classes or None, on_images=advance)
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
        if measured and (warning := hardly_better_than_chance(measured.top1, loader.classes)):
            say(warning)
    for result in results:
        say(", ".join(f"{key} {value}" for key, value in result.items()))
    finish({"split": options.split, "skipped": skipped, "results": results})


def _open_engines(options: Options, checkpoint: ModelOptions, ranks: Ranks, device: torch.device) -> dict[str, Runtime]:
    """Open what is asked for, by the engine's name."""
    import torch

    from repquant.cli.inputs import load_network
    from repquant.runtimes.available import installed, open_classifier, require
    from repquant.runtimes.pytorch import PyTorchRuntime

    # An engine takes all cores by itself; of several processes each keeps to what torchrun gives it.
    threads = torch.get_num_threads() if ranks.world_size > 1 else None
    engines: dict[str, Runtime] = {}
    fitting = [*(["pytorch"] if options.weights else []), *(_readers(options) if options.model else ())]
    everything = [name for name in fitting if name in installed()]
    for name in RUNTIME_NAMES.split(options.runtimes or _default_runtime(options), everything):
        require(name)
        if name == "pytorch":
            if not options.weights:
                raise InputError("the runtime pytorch runs a checkpoint; pass --weights")
            engines[name] = PyTorchRuntime(load_network(checkpoint).to(device))
        else:
            if not options.model:
                raise InputError(f"the runtime {name} runs a file; pass --model")
            engines[name] = open_classifier(name, Path(options.model), threads)
    return engines


def _readers(options: Options) -> tuple[str, ...]:
    """Return the runtimes that read the file that was given."""
    return _READERS.get(Path(options.model).suffix, ONNX_RUNTIMES)


def _default_runtime(options: Options) -> str:
    """Return the runtime that executes what was given.

    Raises:
        InputError: neither a file nor a checkpoint was, or both, or there is none for a file.
    """
    from repquant.runtimes.available import installed

    if bool(options.model) == bool(options.weights):
        raise InputError("which model? Pass --weights for a checkpoint, --model for a file, or --runtimes with both")
    if options.weights:
        return "pytorch"
    engines = _readers(options)
    chosen = next((name for name in engines if name in installed()), engines[0])
    say(f"{options.model} runs in {chosen}; --runtimes names others")
    return chosen


def _images(options: Options, told: FileFacts) -> DataOptions:
    """Return how images become batches: as was asked for, else as the file says, else as is usual."""
    usual = DataOptions(data=options.data)
    return DataOptions(
        data=options.data,
        image_size=options.image_size or told.image_size or usual.image_size,
        crop_ratio=options.crop_ratio or told.crop_ratio or usual.crop_ratio,
        mean=_three("mean", options.mean) if options.mean else told.mean or usual.mean,
        std=_three("std", options.std) if options.std else told.std or usual.std,
        batch_size=options.batch_size,
        workers=options.workers,
        skip_unreadable=options.skip_unreadable,
    )


def _three(name: str, value: str) -> tuple[float, float, float]:
    try:
        return triple(value)
    except TripleError as error:
        raise InputError(f"--{name} {value} was given; {error}") from error


def _words(told: FileFacts) -> str:
    facts = {
        "images of {} px": told.image_size,
        "crop ratio {}": told.crop_ratio,
        "mean {}": told.mean,
        "std {}": told.std,
        "{} classes": told.classes and len(told.classes),
        "calibrator {}": told.calibrator,
    }
    return ", ".join(text.format(value) for text, value in facts.items() if value is not None)
