"""The folder of a training run: the recipe, the last checkpoints, and that of the best epoch."""

import errno
import io
import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from math import isfinite
from pathlib import Path
from typing import Any, Self

import torch
import yaml
from torch import Tensor

from repquant.atomic import replace_file
from repquant.errors import InputError, shortened
from repquant.locks import is_lock
from repquant.models.torch_file import load_torch_file
from repquant.plain_yaml import require_plain
from repquant.regular_files import read_regular
from repquant.train.meters import SUMS
from repquant.train.recipe import Recipe
from repquant.train.reports import EpochReport

BEST = "best.pth"
"""The checkpoint of the epoch with the highest top-1 on the validation images, the first of equals."""

_REPORTED = [field.name for field in fields(EpochReport)]
_RECIPE = "recipe.yaml"
_BEFORE_CHECKPOINTS = (_RECIPE, "tensorboard")
_MOST_RECIPE_BYTES = 2**16
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
            content = load_torch_file(path)
        except Exception as error:  # a damaged file can make the parsers raise anything
            raise InputError(f"{path} is damaged or no checkpoint of a training ({_first_line(error)})") from error
        wrong = _what_is_wrong(content)
        if wrong:
            raise InputError(f"{path} is damaged or no checkpoint of a training ({wrong})")
        return cls(**content)


class UnfitCheckpointError(InputError):
    """A checkpoint can be read, and is not of the training that was to go on from it."""


@dataclass(frozen=True)
class Newest:
    """The newest good checkpoint of a run and its file; None when there is none yet. `damaged` says which are not."""

    checkpoint: Checkpoint | None
    path: Path | None
    damaged: tuple[str, ...]

    def before(self, reason: str) -> "Newest":
        """Return the next good one, as this one does not fit for a reason that is added to `damaged`.

        Raises:
            InputError: there is none.
        """
        assert self.path is not None
        paths = _checkpoints(self.path.parent)
        return _first_good(paths[paths.index(self.path) + 1 :], (*self.damaged, reason), self.path.parent)


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

    A folder is new that is not there, is empty, or holds no more than the recipe of a run that ended before its first
    checkpoint: it was killed, or found something wrong. With `resume`, too.

    Raises:
        InputError: the folder is not new and `resume` is false, holds something else than a run, has another recipe,
            or can't be written.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"output {folder} is a file; give a folder")
    held = list(folder.iterdir()) if folder.exists() else []
    leftovers = [path for path in held if _is_leftover(path)]
    is_new = all(path.name in _BEFORE_CHECKPOINTS or is_lock(path) or path in leftovers for path in held)
    if not (is_new or resume):
        raise InputError(
            f"output folder {folder} is not empty; pass `resume=True` to go on with its run, or choose another one"
        )
    for path in leftovers:
        path.unlink()
    if not is_new:
        _require_same_recipe(folder, recipe)
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"can't make the output folder {folder}: {error.strerror}") from error
    with replace_file(folder / _RECIPE) as temporary:
        temporary.write_text(yaml.safe_dump(_plain(recipe), sort_keys=False), encoding="utf-8")


def _is_leftover(path: Path) -> bool:
    """Whether a process was killed while it wrote this file of a run."""
    return any(path.match(f".{pattern}.*") for pattern in _WRITTEN)


def newest_checkpoint(folder: Path) -> Newest:
    """Load the newest checkpoint of a run that is not damaged; where all of the last ones are, that of the best epoch.

    Raises:
        InputError: there are checkpoints, and all of them are damaged.
    """
    return _first_good(_checkpoints(folder), (), folder)


def _checkpoints(folder: Path) -> list[Path]:
    """In the order in which a run goes on from them."""
    return [*sorted(folder.glob(_CHECKPOINTS), reverse=True), *folder.glob(BEST)]


def _first_good(paths: Sequence[Path], damaged: tuple[str, ...], folder: Path) -> Newest:
    for path in paths:
        try:
            return Newest(Checkpoint.load(path), path, damaged)
        except InputError as error:
            damaged = (*damaged, str(error))
    if damaged:
        raise InputError(
            f"no checkpoint in {folder} can be used: {'; '.join(damaged)}. Remove them to start from the beginning"
        )
    return Newest(None, None, ())


def _require_same_recipe(folder: Path, recipe: Recipe) -> None:
    path = folder / _RECIPE
    try:
        text = read_regular(path, _MOST_RECIPE_BYTES).decode("utf-8")
        require_plain(text, str(path))
        started_with = yaml.safe_load(text)
    except FileNotFoundError:
        raise InputError(f"output folder {folder} holds no run to resume: there is no {_RECIPE}") from None
    except InputError:
        raise
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
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
            yield f"{_shown(name)} was {_shown(before.get(name))} and is {now.get(name)} now"


def _shown(value: Any) -> str:
    try:
        return shortened(str(value))
    except ValueError:  # Python does not write out integers of thousands of digits
        return "a number of thousands of digits"


def _plain(recipe: Recipe) -> dict[str, Any]:
    """The recipe as YAML gives it back."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(recipe).items()}


def _what_is_wrong(content: Any) -> str:
    """Say in which way what was loaded is no checkpoint; nothing where it is one."""
    names = {field.name for field in fields(Checkpoint)}
    if not isinstance(content, dict) or content.keys() != names:
        return f"it has other entries than {', '.join(sorted(names))}"
    history = content["history"]
    checks = {
        "step": _is_count(content["step"]),
        "steps_per_epoch": _is_count(content["steps_per_epoch"], least=1),
        "world_size": _is_count(content["world_size"], least=1),
        "model": _are_tensors(content["model"]),
        "average": content["average"] is None or _are_tensors(content["average"]),
        "optimizer": isinstance(content["optimizer"], dict),
        "scaler": isinstance(content["scaler"], dict),
        "sums": _are_numbers(content["sums"], SUMS),
        "history": isinstance(history, list) and all(_are_numbers(each, _REPORTED) for each in history),
    }
    if wrong := [name for name, is_right in checks.items() if not is_right]:
        return f"its {' and '.join(wrong)} can't be those of a training"
    done = content["step"] - len(history) * content["steps_per_epoch"]
    if not 0 <= done <= content["steps_per_epoch"]:
        return (
            f"after {len(history)} epochs of {content['steps_per_epoch']} steps it can't be at step {content['step']}"
        )
    if done and min(content["sums"]["images"], content["sums"]["seconds"]) <= 0:
        return "it has steps of an epoch, and no images of them"
    return ""


def _is_count(value: Any, least: int = 0) -> bool:
    return type(value) is int and least <= value < 2**63


def _are_tensors(state: Any) -> bool:
    return isinstance(state, dict) and all(isinstance(value, Tensor) for value in state.values())


def _are_numbers(values: Any, names: Collection[str]) -> bool:
    return (
        isinstance(values, dict)
        and values.keys() == set(names)
        and all(type(value) in (int, float) and isfinite(value) for value in values.values())
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
