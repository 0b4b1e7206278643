"""Train a network on labeled images, on one device or, under torchrun, on many.

The defaults are the official recipe for 120 epochs on ImageNet, with label smoothing. --custom-l2 decays the kernel
that the branches are equivalent to; its authors propose it for networks that will be quantized. --model trains a
network of your own in place of an architecture. The output folder holds the recipe, the last checkpoints and the best
one, and at the end result.json and model.safetensors (training form, official keys; a network of your own has its own).
An interrupted run goes on with the same command and --resume; on the CPU, in one process, the weights are those of an
uninterrupted run, bit for bit. SIGTERM or Ctrl-C ends a run with a checkpoint and exit status 75.

  torchrun --nproc-per-node 8 -m repquant train --config RECIPE --data FOLDER --output RUN --device cuda

There the checkpoint is written too, in the 30 s that torchrun leaves its processes, but torchrun itself exits with 1.
With its --max-restarts, pass --resume from the beginning, which begins a run where there is none: torchrun starts the
same command again.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from repquant.cli.console import finish, say, show_configuration
from repquant.cli.flags import with_flags
from repquant.cli.training import RunOptions
from repquant.errors import InputError
from repquant.train.recipe import Recipe
from repquant.train.stopping import stoppable

if TYPE_CHECKING:
    import torch

    from repquant.train.distributed import Ranks
    from repquant.train.loop import Trainer


EXAMPLE = "repquant train --config recipes/imagenet-120.yaml --data FOLDER --output runs/train --device cuda"


@dataclass(frozen=True, kw_only=True)
class Options(Recipe, RunOptions):
    """Options of `repquant train`."""


def run(options: Options) -> None:
    """Run the verb."""
    with stoppable():
        from repquant.train.distributed import started_by_torchrun

        with started_by_torchrun(options.device) as (ranks, device), ExitStack() as until_the_end:
            _train(options, ranks, device, until_the_end)


def _train(options: Options, ranks: Ranks, device: torch.device, until_the_end: ExitStack) -> None:
    from repquant.bench.environment import environment
    from repquant.cli.outputs import output_folder
    from repquant.cli.training import begin, open_images, train
    from repquant.evaluate.stream import Evaluation, evaluate
    from repquant.models.checkpoints import save_model, save_state
    from repquant.models.network import RepVGG
    from repquant.report.record import Record, write_record
    from repquant.report.rows import measured_row
    from repquant.runtimes.pytorch import PyTorchRuntime
    from repquant.train.checkpoint import BEST, newest_checkpoint
    from repquant.train.initial import bare_network, initial_network
    from repquant.train.loop import Trainer
    from repquant.train.reports import summary
    from repquant.train.task import FloatTask

    config = show_configuration("train", options) if ranks.is_main else {}
    output = output_folder(options)
    recipe = Recipe(**{setting.name: getattr(options, setting.name) for setting in fields(Recipe)})
    training, validation = open_images(options, recipe, ranks)
    newest = ranks.from_main(lambda: newest_checkpoint(output)) if options.resume else None
    model, origin = bare_network(recipe) if newest and newest.checkpoint else initial_network(recipe)
    trainer = Trainer(FloatTask(model, recipe), recipe, training, validation, device, ranks)
    origin = with_flags(origin)
    begin(options, recipe, ranks, until_the_end)
    if ranks.is_main:
        say(origin)
    train(trainer, recipe, options, ranks, newest)

    final, _ = bare_network(recipe)
    final.load_state_dict(trainer.result.state_dict())
    final.to(device).eval()
    path = output / "model.safetensors"
    if ranks.is_main:
        with _writing(path, trainer):
            if isinstance(final, RepVGG) and not recipe.model:
                save_model(final, path)
            else:
                save_state(final, path)
    engine = PyTorchRuntime(final)
    evaluation = Evaluation.concatenate(ranks.gather(evaluate({engine.name: engine}, validation)))
    skipped = dict(ChainMap(*ranks.gather(training.skipped | validation.skipped)))
    if not ranks.is_main:
        return
    row = measured_row(
        evaluation,
        engine.name,
        runtime=engine.name,
        runtime_version=engine.version,
        model=str(path),
        file_bytes=path.stat().st_size,
    )
    average = f"the model is the average of the weights with decay {recipe.ema_decay}" if recipe.ema_decay else ""
    held_back = f"accuracy is on {recipe.held_back_images} held-back training images" if recipe.held_back_images else ""
    shared = f"trained by {ranks.world_size} processes" if ranks.world_size > 1 else ""
    said = [note for note in (average, held_back, shared, summary(trainer.history, output / BEST)) if note]
    record = Record(
        command="train",
        output=options.output,
        config=config,
        inputs={},
        environment=environment(),
        notes=(origin, *(report.line(recipe.epochs) for report in trainer.history), *said),
        skipped=skipped,
        float_row=row,
    )
    with _writing(output / "result.json", trainer):
        write_record(record, output / "result.json")
    for note in said:
        say(note)
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


@contextmanager
def _writing(path: Path, trainer: Trainer) -> Iterator[None]:
    """Say what there is when a file can't be written after the training."""
    try:
        yield
    except (OSError, InputError) as error:
        training = "The training is complete in the last checkpoint"
        if not trainer.is_saved:
            training = "The last checkpoint could not be written either, and steps have to be done again"
        raise InputError(
            f"can't write {path}: {error.__cause__ or error}. {training} ({trainer.last_good}): make room, and pass "
            "--resume to go on from there"
        ) from error
