"""A run that goes on: from which checkpoint, and what a person should know about it."""

from collections.abc import Iterator
from functools import partial

from repquant.train.checkpoint import Newest, UnfitCheckpointError
from repquant.train.distributed import Ranks
from repquant.train.loop import Trainer
from repquant.train.recipe import Recipe


def restore(trainer: Trainer, newest: Newest, ranks: Ranks) -> Newest:
    """Go on from the newest checkpoint that fits, and return it. Collective.

    Raises:
        InputError: there are checkpoints, and none of them can be used.
    """
    while newest.checkpoint is not None:
        try:
            trainer.restore(newest.checkpoint, newest.path)
        except UnfitCheckpointError as error:
            newest = ranks.from_main(partial(newest.before, str(error)))
        else:
            break
    return newest


def resumed_lines(newest: Newest, recipe: Recipe, ranks: Ranks) -> Iterator[str]:
    """Say where a resumed run goes on, and what is otherwise than in an uninterrupted one."""
    for damaged in newest.damaged:
        yield f"{damaged}: going back to the one before"
    checkpoint = newest.checkpoint
    if checkpoint is None or newest.path is None:
        yield "there is no checkpoint yet: starting from the beginning"
        return
    total = recipe.epochs * checkpoint.steps_per_epoch
    done = f"epoch {len(checkpoint.history)} of {recipe.epochs}, step {checkpoint.step} of {total}"
    yield f"going on after {done} ({newest.path.name})"
    if checkpoint.world_size != ranks.world_size:
        statistics = "" if recipe.sync_bn else ", and batch statistics are of parts of another size"
        mixing = (
            ", and mixup, CutMix and RandAugment draw otherwise: each process by itself" if recipe.mixes_batches else ""
        )
        yield (
            f"the run was on {checkpoint.world_size} processes and is on {ranks.world_size} now: each step has the "
            f"same images, shared otherwise, so sums are rounded in another order{statistics}{mixing}"
        )
