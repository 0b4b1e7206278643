"""Train a network from scratch on labeled images, with a checkpoint after each epoch.

The defaults are the official recipe for 120 epochs on ImageNet. --custom-l2 decays the kernel that the branches are
equivalent to; its authors propose it for networks that will be quantized. The output folder holds the recipe, the last
checkpoints, and at the end model.safetensors (training form, official keys) and result.json. An interrupted run goes
on with the same command and --resume; on the CPU the weights are those of an uninterrupted run, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from repquant.cli.console import finish, progress, say, show_configuration
from repquant.cli.options import DataOptions, option
from repquant.errors import InputError
from repquant.train.recipe import Recipe

if TYPE_CHECKING:
    import torch

    from repquant.train.loop import EpochReport


@dataclass(frozen=True, kw_only=True)
class Options(Recipe, DataOptions):
    """Options of `repquant train`."""

    output: str = option("folder of the run")
    resume: bool = option("go on from the newest good checkpoint in the output folder", False)
    device: str = option("where to train: cpu or cuda", "cpu")


def run(options: Options) -> None:
    """Run the verb."""
    config = show_configuration("train", options)
    import torch

    from repquant.bench.environment import environment
    from repquant.data.datasets import open_split
    from repquant.evaluate.stream import evaluate
    from repquant.models.checkpoints import save_model
    from repquant.models.network import build
    from repquant.report.record import Record, write_record
    from repquant.report.rows import measured_row
    from repquant.runtimes.pytorch import PyTorchRuntime
    from repquant.train.checkpoint import newest_checkpoint, open_run
    from repquant.train.loop import Trainer
    from repquant.train.sampling import TrainingSet, validation_loader

    recipe = Recipe(**{setting.name: getattr(options, setting.name) for setting in fields(Recipe)})
    device = _open_device(options.device)
    loading = (recipe, options.workers, options.skip_unreadable)
    training = TrainingSet(open_split(options.data, "train"), *loading)
    validation = validation_loader(open_split(options.data, "val"), *loading)
    torch.manual_seed(recipe.seed)
    model = build(recipe.arch, recipe.num_classes)
    trainer = Trainer(model, recipe, training, validation, device)

    output = Path(options.output)
    open_run(output, recipe, resume=options.resume)
    if options.resume:
        newest = newest_checkpoint(output)
        for damaged in newest.damaged:
            say(f"{damaged}: going back to the one before")
        if newest.checkpoint:
            trainer.restore(newest.checkpoint)
            say(f"going on after epoch {len(trainer.history)} of {recipe.epochs}")
        else:
            say("there is no checkpoint yet: starting from the beginning")

    with progress("train", trainer.remaining_images) as advance:
        trainer.fit(output, on_images=advance, on_epoch=lambda report: say(_line(report, recipe.epochs)))

    path = output / "model.safetensors"
    save_model(model, path)
    engine = PyTorchRuntime(model.eval())
    row = measured_row(
        evaluate({engine.name: engine}, validation),
        engine.name,
        runtime=engine.name,
        runtime_version=engine.version,
        model=str(path),
        file_bytes=path.stat().st_size,
    )
    skipped = training.skipped | validation.skipped
    record = Record(
        command="train",
        output=options.output,
        config=config,
        inputs={},
        environment=environment(),
        notes=tuple(_line(report, recipe.epochs) for report in trainer.history),
        skipped=skipped,
        float_row=row,
    )
    write_record(record, output / "result.json")
    if skipped:
        say(f"{len(skipped)} unreadable images were left out; result.json names them")
    seconds = sum(report.train_seconds for report in trainer.history)
    images = sum(report.train_seconds * report.images_per_second for report in trainer.history)
    finish(
        {
            "output": options.output,
            "model": str(path),
            "top1": row.top1,
            "epochs": len(trainer.history),
            "images_per_second": round(images / seconds, 2),
        }
    )


def _open_device(name: str) -> torch.device:
    import torch

    if name not in ("cpu", "cuda"):
        raise InputError(f"device {name!r} was given; allowed are cpu and cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device cuda was given, and PyTorch finds no GPU here; pass --device cpu, or install a build")
    return torch.device(name)


def _line(report: EpochReport, epochs: int) -> str:
    return (
        f"epoch {report.epoch:>{len(str(epochs))}}/{epochs}: loss {report.loss:.4f}, train top-1 "
        f"{report.train_top1:.2f} %, val top-1 {report.val_top1:.2f} %, {report.images_per_second:.0f} images/s"
    )
