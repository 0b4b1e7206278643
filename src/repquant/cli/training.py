"""What the verbs that train have in common."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from repquant.choices import Device
from repquant.cli.console import progress, say
from repquant.cli.options import DataOptions
from repquant.option_ranges import COUNT, Numbers, option

if TYPE_CHECKING:
    from repquant.data.loading import Loader
    from repquant.train.checkpoint import Newest
    from repquant.train.distributed import Ranks
    from repquant.train.loop import Trainer
    from repquant.train.recipe import Recipe
    from repquant.train.reports import EpochReport, StepReport
    from repquant.train.sampling import TrainingSet


@dataclass(frozen=True, kw_only=True)
class RunOptions(DataOptions):
    """Run: what its weights do not depend on, but for the images."""

    output: str = option("folder of the run")
    resume: bool = option("go on from the newest good checkpoint in the output folder", False)
    device: Device = option("where to train", "cpu")
    checkpoint_steps: int = option(
        "steps between checkpoints within an epoch; 0 for one after each epoch alone", 0, COUNT
    )
    keep: int = option("checkpoints that are kept, besides the best", 2, Numbers(1, 10**4))
    tensorboard: bool = option("write loss, learning rate and accuracy to OUTPUT/tensorboard", False)


def open_images(options: RunOptions, recipe: Recipe, ranks: Ranks) -> tuple[TrainingSet, Loader]:
    """Open this rank's parts of the training and of the validation images.

    Raises:
        InputError: see `TrainingSet` and `validation_loader`; TensorBoard or kornia is needed and not
            installed.
    """
    from repquant.data.datasets import open_split
    from repquant.train.board import require_tensorboard
    from repquant.train.held_back import hold_back, take
    from repquant.train.sampling import TrainingSet, validation_loader

    if options.tensorboard:
        require_tensorboard()
    if recipe.mixes_batches:
        from repquant.train.batch_augment import require_kornia

        require_kornia()
    training, validation = open_split(options.data, "train"), None
    if recipe.held_back_images:
        training, validation = hold_back(training, recipe.held_back_images)
    if recipe.training_images:
        training = take(training, recipe.training_images)
    loading = (recipe, options.workers, options.skip_unreadable, ranks)
    return TrainingSet(training, *loading), validation_loader(validation or open_split(options.data, "val"), *loading)


def begin(options: RunOptions, recipe: Recipe, ranks: Ranks, until_the_end: ExitStack) -> None:
    """Open the folder of the run, and keep others out of it until the end. Collective.

    Raises:
        InputError: see `sole_user` and `open_run`.
    """
    from repquant.locks import sole_user
    from repquant.train.checkpoint import open_run

    def enter() -> None:
        until_the_end.enter_context(sole_user(Path(options.output)))
        open_run(Path(options.output), recipe, resume=options.resume)

    ranks.from_main(enter)


def train(trainer: Trainer, recipe: Recipe, options: RunOptions, ranks: Ranks, newest: Newest | None) -> None:
    """Train what is left, with all that a person sees of it; every rank calls it.

    Args:
        trainer: at the beginning.
        recipe: its recipe.
        options: of the run.
        ranks: those that train.
        newest: where a resumed run goes on; None for a new one.

    Raises:
        InputError, StoppedError, OSError: see `Trainer.fit`.
    """
    from repquant.train.board import Board
    from repquant.train.resuming import restore, resumed_lines

    output = Path(options.output)
    if newest is not None:
        newest = restore(trainer, newest, ranks)
        if ranks.is_main:
            for line in resumed_lines(newest, recipe, ranks):
                say(line)
    if not ranks.is_main:
        trainer.fit(
            output, lambda _: None, lambda _: None, checkpoint_steps=options.checkpoint_steps, keep=options.keep
        )
        return

    board = Board(output / "tensorboard", trainer.step, say) if options.tensorboard else None
    with progress("train", trainer.remaining_images) as advance:

        def on_step(report: StepReport) -> None:
            advance(report.images, _note(report))
            if board is not None:
                board.add_step(report)

        def on_epoch(report: EpochReport) -> None:
            say(report.line(recipe.epochs))
            if board is not None:
                board.add_epoch(report)

        try:
            trainer.fit(
                output, on_step, on_epoch, checkpoint_steps=options.checkpoint_steps, keep=options.keep, on_notice=say
            )
        finally:
            if board is not None:
                board.close()


def _note(report: StepReport) -> str:
    loss = "" if report.loss is None else f"loss {report.loss:.3f}  "
    return f"{loss}lr {report.learning_rate:.3g}  data {report.data_percent:.0f} %"
