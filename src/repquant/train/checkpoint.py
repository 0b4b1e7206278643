"""The folder of a training run: the recipe, and a checkpoint after each epoch, of which the last ones are kept."""

import io
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

KEPT = 2
"""How many checkpoints are kept: with two, the one before is there when the newest is damaged."""

_RECIPE = "recipe.yaml"
_CHECKPOINTS = "checkpoint-*.pth"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Everything that a training goes on from, at the end of an epoch. Plain data and tensors only.

    Attributes:
        steps_per_epoch: tells whether the run goes on with as many images.
        model: state dict of the network.
        optimizer: state dict of the optimizer.
        random_states: torch's global generators by device type, uint8.
        history: one dictionary for each epoch that is done.
    """

    steps_per_epoch: int
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    random_states: dict[str, Tensor]
    history: list[dict[str, Any]]

    def save(self, folder: Path) -> None:
        """Write the checkpoint of the last epoch in `history`, whole or not at all, and remove the oldest ones."""
        buffer = io.BytesIO()
        torch.save(vars(self), buffer)
        with replace_file(checkpoint_path(folder, len(self.history))) as temporary:
            temporary.write_bytes(buffer.getbuffer())
        for old in sorted(folder.glob(_CHECKPOINTS))[:-KEPT]:
            old.unlink()

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
    """The newest good checkpoint of a run; None when no epoch is done. `damaged` says which newer ones are not."""

    checkpoint: Checkpoint | None
    damaged: tuple[str, ...]


def checkpoint_path(folder: Path, epoch: int) -> Path:
    """Where the checkpoint is that was written after `epoch` epochs."""
    return folder / f"checkpoint-{epoch:04d}.pth"


def open_run(folder: Path, recipe: Recipe, *, resume: bool) -> None:
    """Make the folder of a new run, or check that the run in it was started with the same recipe.

    With `resume`, a folder that is not there yet or is empty is made too: the run may have been killed that early.

    Raises:
        InputError: the folder is not empty and `resume` is false, holds something else than a run, has another recipe,
            or can't be written.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"output {folder} is a file; give a folder")
    if folder.exists() and any(folder.iterdir()):
        if not resume:
            raise InputError(
                f"output folder {folder} is not empty; pass --resume to go on with the run in it, or choose another one"
            )
        _require_same_recipe(folder, recipe)
        for leftover in folder.glob(f".{_CHECKPOINTS}"):  # from a process that was killed while it wrote
            leftover.unlink()
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"can't make the output folder {folder}: {error.strerror}") from error
    with replace_file(folder / _RECIPE) as temporary:
        temporary.write_text(yaml.safe_dump(_plain(recipe), sort_keys=False), encoding="utf-8")


def newest_checkpoint(folder: Path) -> Newest:
    """Load the newest checkpoint of a run that is not damaged.

    Raises:
        InputError: there are checkpoints, and all of them are damaged.
    """
    damaged: list[str] = []
    for path in sorted(folder.glob(_CHECKPOINTS), reverse=True):
        try:
            return Newest(Checkpoint.load(path), tuple(damaged))
        except InputError as error:
            damaged.append(str(error))
    if damaged:
        raise InputError(
            f"no checkpoint in {folder} can be read: {'; '.join(damaged)}. Remove them to start from the beginning"
        )
    return Newest(None, ())


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
