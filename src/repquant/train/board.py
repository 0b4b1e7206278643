"""The course of a training as TensorBoard shows it."""

from pathlib import Path

from repquant.errors import InputError
from repquant.train.reports import EpochReport, StepReport

_EVERY = 10
"""Steps between two points of a curve."""


class Board:
    """Writes curves over the optimizer steps.

    Args:
        folder: of the event files; a resumed run adds to those that are there.
        step: that the run goes on from; what an interrupted run wrote for later ones is not shown.

    Raises:
        InputError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise InputError("--tensorboard needs TensorBoard; pip install 'repquant[train]'") from error
        self._writer = SummaryWriter(folder, purge_step=step)
        self._step = step

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
        self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()

    def _add(self, name: str, value: float) -> None:
        self._writer.add_scalar(name, value, self._step)
