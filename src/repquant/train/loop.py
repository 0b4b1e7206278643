"""The training loop: step by step, with a validation after each epoch, and checkpoints that it can go on from."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor, nn

from repquant.data.loading import Batch, Loader
from repquant.errors import InputError
from repquant.train.checkpoint import BEST, Checkpoint, UnfitCheckpointError, is_disk_full, mark_best
from repquant.train.distributed import ONE, Ranks
from repquant.train.meters import LossWatch, Meter
from repquant.train.optim import learning_rate
from repquant.train.recipe import Recipe
from repquant.train.reports import EpochReport, StepReport
from repquant.train.sampling import TrainingSet
from repquant.train.step import Stepper
from repquant.train.stopping import StoppedError, StopRequest, listening
from repquant.train.task import Task
from repquant.train.validation import top1

_SMALLEST_BFLOAT16_IMAGE = 17
"""On the CPU. With 16 pixels or fewer the last stage's input is 1 x 1, and there oneDNN's weight gradient of a 3x3
convolution with stride 2 in bfloat16 holds uninitialized memory (torch 2.13)."""


class DivergedError(InputError):
    """The loss or a weight is NaN or infinite."""


class Trainer:
    """A task in training, between two steps.

    Args:
        task: its model is moved to the device and trained in place.
        recipe: how.
        training: the training images.
        validation: labeled images; of several ranks, the part of this one.
        device: where the network is trained.
        ranks: this process among those that train; each has a Trainer.

    Attributes:
        history: one report for each epoch that is done.
        step: how many are done.

    Raises:
        InputError: the images are too small for bfloat16 on the CPU, or the precision is not for this device.
    """

    def __init__(
        self,
        task: Task,
        recipe: Recipe,
        training: TrainingSet,
        validation: Loader,
        device: torch.device,
        ranks: Ranks = ONE,
    ) -> None:
        _require_precision(recipe, device)
        self.history: list[EpochReport] = []
        self._task = task
        self._recipe = recipe
        self._training = training
        self._validation = validation
        self._device = device
        self._ranks = ranks
        self._stepper = Stepper(task, recipe, device, ranks)
        self.step = 0
        self._meter = Meter(device)
        self._losses = LossWatch(device)
        self._saved: tuple[Path, int] | None = None

    @property
    def model(self) -> nn.Module:
        """The network that is trained."""
        return self._task.model

    @property
    def result(self) -> nn.Module:
        """The network to use: the one that is trained, or the average of its weights when the recipe asks for one."""
        return self._stepper.result

    @property
    def remaining_images(self) -> int:
        """Training images of all steps that are not done."""
        return (self._total_steps - self.step) * self._recipe.batch_size

    @property
    def last_good(self) -> str:
        """The last checkpoint that was written or restored, and its step, for messages."""
        return "none yet" if self._saved is None else f"{self._saved[0]}, step {self._saved[1]} of {self._total_steps}"

    @property
    def is_saved(self) -> bool:
        """Whether the last checkpoint has all steps that are done."""
        return self._saved is not None and self._saved[1] == self.step

    def fit(
        self,
        folder: Path,
        on_step: Callable[[StepReport], None],
        on_epoch: Callable[[EpochReport], None],
        *,
        checkpoint_steps: int = 0,
        keep: int = 2,
        on_notice: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Train the steps that are left. Every rank calls it; the callbacks are called in each.

        Args:
            folder: exists; gets a checkpoint after each epoch.
            on_step: called after each step.
            on_epoch: called after each epoch's checkpoint.
            checkpoint_steps: steps between checkpoints within an epoch; 0 for none.
            keep: how many of the last checkpoints stay.
            on_notice: called with a sentence, in the main process, when a checkpoint could not be written because the
                disk is full. The training goes on.

        Raises:
            DivergedError: the loss or a weight is not finite. No checkpoint has such weights.
            StoppedError: the process, or that of another rank, was asked to stop; a checkpoint is written.
            InputError: an image can't be read.
            OSError: a checkpoint can't be written, and the disk is not full; the one before is intact.
        """

        def save() -> None:
            self._save(folder, keep, on_notice)

        batches = self._training.batches(self.step, self._total_steps, self._device)
        with listening(self._ranks.world_size == 1) as stop:
            while len(self.history) < self._recipe.epochs:
                if self.step < self._end_of_epoch:
                    on_step(self._take_step(batches))
                    is_due = checkpoint_steps and self.step % checkpoint_steps == 0
                    is_reading = is_due or self._losses.is_due or self.step == self._end_of_epoch
                    is_stopping = False
                    if is_reading or (stop.requested and self._ranks.world_size == 1):
                        is_stopping = self._read_losses(stop)
                    if is_stopping or (is_due and self.step < self._end_of_epoch):
                        save()
                else:
                    report = self._finish_epoch(stop)
                    is_stopping = report is None
                    save()
                    if report is not None:
                        on_epoch(report)
                if is_stopping:
                    raise self._stopped()
            if stop.requested:  # too late for the other ranks to know, and each of them was asked
                raise self._stopped()

    def checkpoint(self) -> Checkpoint:
        """Return the state that `restore` goes on from. Collective."""
        return Checkpoint(
            step=self.step,
            steps_per_epoch=self._training.steps,
            world_size=self._ranks.world_size,
            **self._stepper.state(),
            sums=self._meter.totals(self._ranks),
            history=[asdict(report) for report in self.history],
        )

    def restore(self, checkpoint: Checkpoint, path: Path | None = None) -> None:
        """Go on from a checkpoint of the same recipe; on the CPU, in one process, to the same bits.

        Args:
            checkpoint: what to go on from.
            path: its file, for messages.

        Raises:
            InputError: the number of training images is another one.
            UnfitCheckpointError: it is of another network or optimizer. Some of it may have been taken over: restore
                another one.
        """
        if checkpoint.steps_per_epoch != self._training.steps:
            raise InputError(
                f"the run has {checkpoint.steps_per_epoch} steps an epoch, these training images give "
                f"{self._training.steps}; resume it with the images that it was started with"
            )
        try:
            if checkpoint.step > self._total_steps:
                raise ValueError(f"it is at step {checkpoint.step}, and the training has {self._total_steps}")
            self._stepper.restore(checkpoint.model, checkpoint.average, checkpoint.optimizer, checkpoint.scaler)
        except ValueError as error:
            raise UnfitCheckpointError(f"{path or 'the checkpoint'} is not of this training ({error})") from error
        self.history = [EpochReport(**report) for report in checkpoint.history]
        self.step = checkpoint.step
        self._meter = Meter(self._device)
        self._meter.restore(checkpoint.sums, self._ranks)
        if path is not None:
            self._saved = path, self.step
            if self._ranks.is_main and checkpoint.is_best and path.name != BEST:
                mark_best(path)  # the process may have ended between the two names

    @property
    def _total_steps(self) -> int:
        return self._recipe.epochs * self._training.steps

    @property
    def _end_of_epoch(self) -> int:
        """The step with which the epoch ends that is under way."""
        return (len(self.history) + 1) * self._training.steps

    def _take_step(self, batches: Iterator[Batch]) -> StepReport:
        """Update the weights once."""
        meter, rate = self._meter, self._learning_rate(self.step)
        began, before = perf_counter(), meter.images
        loss = self._stepper.take(batches, self.step, self._total_steps, rate, meter)
        self._losses.add(self.step, loss)
        self.step += 1
        meter.seconds += perf_counter() - began
        return StepReport(
            step=self.step,
            images=(meter.images - before) * self._ranks.world_size,
            loss=self._losses.latest,
            learning_rate=rate,
            data_percent=100 * meter.waiting / meter.seconds,
        )

    def _read_losses(self, stop: StopRequest) -> bool:
        """Refuse losses that are not finite; return whether any rank was asked to stop. Collective."""
        began = perf_counter()
        step, loss, is_stopping = self._losses.read(self._ranks, stop.requested)
        self._meter.seconds += perf_counter() - began  # the steps that the device was behind
        if step is not None:
            raise self._diverged(f"the loss is {loss}", step)
        return is_stopping

    def _finish_epoch(self, stop: StopRequest) -> EpochReport | None:
        """Validate, and add a report to the history; None, and nothing done, when any rank was asked to stop."""
        accuracy = top1(self.result, self._validation, self._device, self._ranks, lambda: stop.requested)
        if accuracy is None:
            return None
        totals = self._meter.totals(self._ranks)
        report = EpochReport(
            epoch=len(self.history) + 1,
            learning_rate=self._learning_rate(self.step - 1),
            loss=totals["loss"] / totals["images"],
            train_top1=100 * totals["hits"] / totals["images"],
            val_top1=accuracy,
            train_seconds=totals["seconds"],
            images_per_second=totals["images"] / totals["seconds"],
            data_percent=100 * totals["waiting"] / totals["seconds"],
        )
        self.history.append(report)
        self._meter = Meter(self._device)
        return report

    def _save(self, folder: Path, keep: int, on_notice: Callable[[str], None]) -> None:
        """Write a checkpoint in the main process, unless the disk is full. Collective."""
        checkpoint = self.checkpoint()
        averaged = () if checkpoint.average is None else checkpoint.average.values()
        if not _all_finite([*checkpoint.model.values(), *averaged]):
            raise self._diverged("weights are not finite", self.step - 1)

        def write() -> tuple[Path, int] | None:
            with self._going_on(f"no checkpoint of step {self.step} in {folder}", on_notice):
                path = checkpoint.save(folder, keep)
                self._saved = path, self.step
                if checkpoint.is_best:
                    with self._going_on(f"{path} is the best until now and could not be named {BEST} too", on_notice):
                        mark_best(path)
            return self._saved

        self._saved = self._ranks.from_main(write)

    @contextmanager
    def _going_on(self, consequence: str, on_notice: Callable[[str], None]) -> Iterator[None]:
        """Let a full disk have this consequence alone."""
        try:
            yield
        except (OSError, InputError) as error:
            if not is_disk_full(error):
                raise
            on_notice(f"the disk is full: {consequence}. Training goes on; last good checkpoint: {self.last_good}")

    def _learning_rate(self, step: int) -> float:
        recipe, steps = self._recipe, self._training.steps
        return learning_rate(
            step,
            total_steps=self._total_steps,
            warmup_steps=round(recipe.warmup_epochs * steps),
            peak=recipe.peak_learning_rate,
        )

    def _diverged(self, what: str, step: int) -> DivergedError:
        return DivergedError(
            f"training has diverged: {what} at step {step + 1} of {self._total_steps} "
            f"(epoch {step // self._training.steps + 1}), learning rate {self._learning_rate(step):.6g}; "
            f"lower `learning_rate` or raise `warmup_epochs`. Last good checkpoint: {self.last_good}"
        )

    def _stopped(self) -> StoppedError:
        return StoppedError(
            f"stopped as asked after step {self.step} of {self._total_steps}; the same run with `resume=True` goes on. "
            f"Last good checkpoint: {self.last_good}"
        )


def _require_precision(recipe: Recipe, device: torch.device) -> None:
    if recipe.precision == "float16" and device.type != "cuda":
        raise InputError('`precision="float16"` needs `device="cuda"`; pass bfloat16 or float32')
    smallest = min(recipe.training_sizes)
    if smallest < _SMALLEST_BFLOAT16_IMAGE and recipe.precision == "bfloat16" and device.type == "cpu":
        raise InputError(
            f'`precision="bfloat16"` gives wrong gradients on the CPU for images of {smallest} pixels; '
            f'pass `precision="float32"`, or `image_size={_SMALLEST_BFLOAT16_IMAGE}` or more'
        )


def _all_finite(tensors: Iterable[Tensor]) -> bool:
    checks = [tensor.isfinite().all() for tensor in tensors]
    return bool(torch.stack(checks).all())
