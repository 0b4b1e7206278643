"""The folder of a training run: the recipe, the last checkpoints, and that of the best epoch."""

import errno
import io
import os
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
import yaml
from torch import Tensor

from repquant.atomic import replace_file
from repquant.errors import InputError
from repquant.train.recipe import Recipe

BEST = "best.pth"
"""The checkpoint of the epoch with the highest top-1 on the validation images, the first of equals."""

_RECIPE = "recipe.yaml"
_CHECKPOINTS = "checkpoint-*.pth"
_WRITTEN = (_RECIPE, _CHECKPOINTS, BEST, "model.safetensors", "result.json", "*.onnx")
"""Names of all files that are written into the folder of a run; each first under a hidden name."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Everything that a training goes on from, after any step. Plain data and tensors only.

    No random state is part of it: all that is random follows from the seed and the step.

    Attributes:
        step: optimizer steps that are done.
        steps_per_epoch: tells whether the run goes on with as many images.
        world_size: processes that trained.
        model: state dict of the network.
        average: state dict of the average of its weights; None without one.
        optimizer: state dict of the optimizer.
        scaler: state dict of the loss scale; empty unless the precision is float16.
        sums: over the steps of the epoch that is not done, as `Meter` has them.
        history: one dictionary for each epoch that is done.
    """

    step: int
    steps_per_epoch: int
    world_size: int
    model: dict[str, Tensor]
    average: dict[str, Tensor] | None
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    sums: dict[str, float]
    history: list[dict[str, Any]]

    @property
    def is_best(self) -> bool:
        """Whether an epoch ends here whose top-1 on the validation images is higher than that of all before."""
        accuracies = [report["val_top1"] for report in self.history]
        at_end = self.step == len(accuracies) * self.steps_per_epoch
        return bool(accuracies) and at_end and accuracies[-1] > max(accuracies[:-1], default=-1.0)

    def save(self, folder: Path, keep: int) -> Path:
        """Write the checkpoint, whole or not at all, and remove all but the last `keep`; `mark_best` is apart.

        Checkpoints of later steps are removed too: this run does not go on from them, so they are damaged.

        Raises:
            OSError: it can't be written; the ones before are intact.
        """
        buffer = io.BytesIO()
        torch.save(vars(self), buffer)
        path = checkpoint_path(folder, self.step)
        with replace_file(path) as temporary:
            temporary.write_bytes(buffer.getbuffer())
        paths = sorted(folder.glob(_CHECKPOINTS))
        until_now = paths[: paths.index(path) + 1]
        for old in {*paths} - {*until_now[-keep:]}:
            old.unlink()
        return path

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a checkpoint onto the CPU; nothing in the file is run.

        Raises:
            InputError: the file can't be read, is damaged, or is no checkpoint of a training.
        """
        try:
            with zipfile.ZipFile(path) as archive:  # torch.load does not compare the checksums
                damaged = archive.testzip()
            if damaged is None:
                return cls(**torch.load(path, map_location="cpu", weights_only=True))
        except Exception as error:  # a damaged file can make the parsers raise anything
            raise InputError(f"{path} is damaged or no checkpoint of a training ({_first_line(error)})") from error
        raise InputError(f"{path} is damaged (the checksum of {damaged} is wrong)")


@dataclass(frozen=True)
class Newest:
    """The newest good checkpoint of a run and its file; None when there is none yet. `damaged` says which are not."""

    checkpoint: Checkpoint | None
    path: Path | None
    damaged: tuple[str, ...]


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint is that was written after `step` steps."""
    return folder / f"checkpoint-{step:08d}.pth"


def mark_best(path: Path) -> None:
    """Give a checkpoint its second name, under which it stays when it is no longer among the last ones."""
    with replace_file(path.with_name(BEST)) as temporary:
        temporary.unlink()
        try:
            os.link(path, temporary)
        except OSError:  # some file systems have no links
            shutil.copyfile(path, temporary)


def is_disk_full(error: BaseException | None) -> bool:
    """Whether there was no space left, or none that this user may take."""
    if isinstance(error, InputError):
        error = error.__cause__
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def open_run(folder: Path, recipe: Recipe, *, resume: bool) -> None:
    """Make the folder of a new run, or check that the run in it was started with the same recipe.

    With `resume`, a folder that is not there yet or is empty is made too: the run may have been killed that early.

    Raises:
        InputError: the folder is not empty and `resume` is false, holds something else than a run, has another recipe,
            or can't be written.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"output {folder} is a file; give a folder")
    if resume:
        for pattern in _WRITTEN:
            for leftover in folder.glob(f".{pattern}.*"):  # from a process that was killed while it wrote
                leftover.unlink()
    if folder.exists() and any(folder.iterdir()):
        if not resume:
            raise InputError(
                f"output folder {folder} is not empty; pass --resume to go on with the run in it, or choose another one"
            )
        _require_same_recipe(folder, recipe)
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"can't make the output folder {folder}: {error.strerror}") from error
    with replace_file(folder / _RECIPE) as temporary:
        temporary.write_text(yaml.safe_dump(_plain(recipe), sort_keys=False), encoding="utf-8")


def newest_checkpoint(folder: Path) -> Newest:
    """Load the newest checkpoint of a run that is not damaged; where all of the last ones are, that of the best epoch.

    Raises:
        InputError: there are checkpoints, and all of them are damaged.
    """
    damaged: list[str] = []
    for path in (*sorted(folder.glob(_CHECKPOINTS), reverse=True), *folder.glob(BEST)):
        try:
            return Newest(Checkpoint.load(path), path, tuple(damaged))
        except InputError as error:
            damaged.append(str(error))
    if damaged:
        raise InputError(
            f"no checkpoint in {folder} can be read: {'; '.join(damaged)}. Remove them to start from the beginning"
        )
    return Newest(None, None, ())


def _require_same_recipe(folder: Path, recipe: Recipe) -> None:
    path = folder / _RECIPE
    try:
        started_with = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"output folder {folder} holds no run to resume: there is no {_RECIPE}") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"can't read {path}: {_first_line(error)}") from error
    if not isinstance(started_with, dict):
        raise InputError(f"{path} is not the recipe of a run")
    differences = "; ".join(_differences(started_with, _plain(recipe)))
    if differences:
        raise InputError(
            f"the run in {folder} was started with another recipe: {differences}. "
            "Resume it with the settings that it has, or choose another output folder"
        )


def _differences(before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    for name in dict.fromkeys((*before, *now)):
        if before.get(name) != now.get(name):
            yield f"{name} was {before.get(name)} and is {now.get(name)} now"


def _plain(recipe: Recipe) -> dict[str, Any]:
    """The recipe as YAML gives it back."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(recipe).items()}


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
