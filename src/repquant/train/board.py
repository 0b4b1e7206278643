"""The course of a training as TensorBoard shows it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from repquant.errors import InputError
from repquant.train.reports import EpochReport, StepReport

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_EVERY = 10
"""Steps between two points of a curve."""


def require_tensorboard() -> "type[SummaryWriter]":
    """Return TensorBoard's writer.

    Raises:
        InputError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError("`tensorboard` needs TensorBoard; pip install 'repquant[train]'") from error
    return SummaryWriter


class Board:
    """Writes curves over the optimizer steps, for as long as they can be written: a training is worth more than they.

    Args:
        folder: of the event files; a resumed run adds to those that are there.
        step: that the run goes on from; what an interrupted run wrote for later ones is not shown.
        on_notice: called with a sentence when the curves end because the disk is full, for example.

    Raises:
        InputError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, step: int, on_notice: Callable[[str], None]) -> None:
        open_writer = require_tensorboard()
        self._folder = folder
        self._step = step
        self._on_notice = on_notice
        self._writer: SummaryWriter | None = None
        with self._until_an_error():
            self._writer = open_writer(folder, purge_step=step)

    def add_step(self, report: StepReport) -> None:
        """Write loss, learning rate and the share of waiting for images, every few steps."""
        self._step = report.step
        if report.step % _EVERY == 0 and report.loss is not None:
            self._add("step/loss", report.loss)
            self._add("step/learning_rate", report.learning_rate)
            self._add("step/data_percent", report.data_percent)

    def add_epoch(self, report: EpochReport) -> None:
        """Write what an epoch gave, at its last step."""
        self._add("epoch/loss", report.loss)
        self._add("epoch/train_top1", report.train_top1)
        self._add("epoch/val_top1", report.val_top1)
        self._add("epoch/images_per_second", report.images_per_second)
        self._add("epoch/data_percent", report.data_percent)
        with self._until_an_error():
            if self._writer is not None:
                self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        with self._until_an_error():
            if self._writer is not None:
                self._writer.close()

    def _add(self, name: str, value: float) -> None:
        with self._until_an_error():
            if self._writer is not None:
                self._writer.add_scalar(name, value, self._step)

    @contextmanager
    def _until_an_error(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # OSError, or with TensorFlow installed one of its own
            self._writer = None
            self._on_notice(
                f"TensorBoard can't write to {self._folder} ({error}): its curves end before step {self._step}. "
                "Training goes on"
            )
