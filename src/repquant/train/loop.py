"""The training loop: from one epoch to the next, each ending with a validation and a checkpoint."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor, nn

from repquant.data.loading import Loader
from repquant.errors import InputError
from repquant.train.checkpoint import Checkpoint, checkpoint_path
from repquant.train.losses import classification_loss, custom_l2
from repquant.train.optim import learning_rate, sgd
from repquant.train.recipe import Recipe
from repquant.train.sampling import TrainingSet

_SMALLEST_BFLOAT16_IMAGE = 17
"""On the CPU. With 16 pixels or fewer the last stage's input is 1 x 1, and there oneDNN's weight gradient of a 3x3
convolution with stride 2 in bfloat16 holds uninitialized memory (torch 2.13)."""


class DivergedError(InputError):
    """The loss or a weight is NaN or infinite."""


@dataclass(frozen=True, kw_only=True)
class EpochReport:
    """What an epoch gave. Percentages run 0-100.

    Attributes:
        epoch: epochs done, this one included.
        learning_rate: of its last step.
        loss: mean cross-entropy with smoothed labels on the augmented images, as the weights changed.
        train_top1: accuracy on the same images in the same passes.
        val_top1: accuracy of the weights at its end on the validation images.
        train_seconds: reading of the images included, validation not.
        images_per_second: of training.
    """

    epoch: int
    learning_rate: float
    loss: float
    train_top1: float
    val_top1: float
    train_seconds: float
    images_per_second: float


class Trainer:
    """A network in training, at the end of an epoch.

    Args:
        model: moved to the device and trained in place.
        recipe: how.
        training: the training images.
        validation: labeled images.
        device: where the network is trained.

    Attributes:
        model: the network.
        history: one report for each epoch that is done.

    Raises:
        InputError: the images are too small for bfloat16 on the CPU.
    """

    def __init__(
        self, model: nn.Module, recipe: Recipe, training: TrainingSet, validation: Loader, device: torch.device
    ) -> None:
        is_small = recipe.image_size < _SMALLEST_BFLOAT16_IMAGE
        if is_small and recipe.precision == "bfloat16" and device.type == "cpu":
            raise InputError(
                f"--precision bfloat16 gives wrong gradients on the CPU for images of {recipe.image_size} pixels; "
                f"pass --precision float32, or --image-size {_SMALLEST_BFLOAT16_IMAGE} or more"
            )
        # Contiguous NCHW throughout: the backward pass of a RepVGG in channels_last crashes on the CPU (torch 2.13).
        self.model = model.to(device)
        self.history: list[EpochReport] = []
        self._recipe = recipe
        self._training = training
        self._validation = validation
        self._device = device
        self._optimizer = sgd(self.model, recipe)

    @property
    def remaining_images(self) -> int:
        """Training images of all epochs that are not done."""
        return (self._recipe.epochs - len(self.history)) * self._training.steps * self._recipe.batch_size

    def fit(self, folder: Path, on_images: Callable[[int], None], on_epoch: Callable[[EpochReport], None]) -> None:
        """Train the epochs that are left.

        Args:
            folder: exists; gets a checkpoint after each epoch.
            on_images: called after each step with its number of images.
            on_epoch: called after each checkpoint.

        Raises:
            DivergedError: the loss or a weight is not finite. No checkpoint has such weights.
            InputError: an image can't be read.
            OSError: a checkpoint can't be written; the one before is intact.
        """
        while len(self.history) < self._recipe.epochs:
            try:
                report = self.run_epoch(on_images)
            except DivergedError as error:
                last_good = checkpoint_path(folder, len(self.history)) if self.history else "none, in the first epoch"
                raise DivergedError(f"{error}. Last good checkpoint: {last_good}") from None
            self.checkpoint().save(folder)
            on_epoch(report)

    def run_epoch(self, on_images: Callable[[int], None]) -> EpochReport:
        """Train one epoch, measure it, and add its report to the history.

        Raises:
            DivergedError: the loss or, at the end, a weight is not finite.
        """
        epoch, steps = len(self.history), self._training.steps
        self.model.train()
        loss_sum, hits, images, rate = 0.0, 0, 0, 0.0
        started = perf_counter()
        for step, batch in enumerate(self._training.epoch(epoch), start=epoch * steps):
            assert batch.labels is not None
            rate = self._learning_rate(step)
            loss, correct = self._step(batch.images.to(self._device), batch.labels.to(self._device), rate)
            if not isfinite(loss):
                raise self._diverged(f"the loss is {loss}", step, rate)
            count = len(batch.images)
            loss_sum, hits, images = loss_sum + loss * count, hits + correct, images + count
            on_images(count)
        seconds = perf_counter() - started
        if not all(bool(tensor.isfinite().all()) for tensor in self.model.state_dict().values()):
            raise self._diverged("weights are not finite", (epoch + 1) * steps - 1, rate)
        report = EpochReport(
            epoch=epoch + 1,
            learning_rate=rate,
            loss=loss_sum / images,
            train_top1=100 * hits / images,
            val_top1=top1(self.model, self._validation, self._device),
            train_seconds=seconds,
            images_per_second=images / seconds,
        )
        self.history.append(report)
        return report

    def checkpoint(self) -> Checkpoint:
        """Return the state that `restore` goes on from."""
        random_states = {"cpu": torch.get_rng_state()}
        if self._device.type == "cuda":
            random_states["cuda"] = torch.cuda.get_rng_state(self._device)
        return Checkpoint(
            steps_per_epoch=self._training.steps,
            model=self.model.state_dict(),
            optimizer=self._optimizer.state_dict(),
            random_states=random_states,
            history=[asdict(report) for report in self.history],
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint of the same recipe; on the CPU, with the same number of threads, to the same bits.

        Raises:
            InputError: the number of training images is another one.
        """
        if checkpoint.steps_per_epoch != self._training.steps:
            raise InputError(
                f"the run has {checkpoint.steps_per_epoch} steps an epoch, these training images give "
                f"{self._training.steps}; resume it with the images that it was started with"
            )
        self.model.load_state_dict(checkpoint.model)
        self._optimizer.load_state_dict(checkpoint.optimizer)
        self.history = [EpochReport(**report) for report in checkpoint.history]
        torch.set_rng_state(checkpoint.random_states["cpu"])
        if self._device.type == "cuda" and "cuda" in checkpoint.random_states:
            torch.cuda.set_rng_state(checkpoint.random_states["cuda"], self._device)

    def _learning_rate(self, step: int) -> float:
        recipe, steps = self._recipe, self._training.steps
        return learning_rate(
            step,
            total_steps=recipe.epochs * steps,
            warmup_steps=round(recipe.warmup_epochs * steps),
            peak=recipe.learning_rate,
        )

    def _step(self, images: Tensor, labels: Tensor, rate: float) -> tuple[float, int]:
        """Update the weights once; return the mean loss before, and how many images were right."""
        recipe = self._recipe
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(self._device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
            logits = self.model(images)
        loss = classification_loss(logits, labels, recipe.label_smoothing)
        objective = loss
        if recipe.custom_l2:
            objective = loss + recipe.weight_decay / 2 * custom_l2(self.model)
        self._optimizer.zero_grad()
        objective.backward()
        self._optimizer.step()
        return loss.item(), int((logits.argmax(dim=1) == labels).sum())

    def _diverged(self, what: str, step: int, rate: float) -> DivergedError:
        total = self._recipe.epochs * self._training.steps
        return DivergedError(
            f"training has diverged: {what} at step {step + 1} of {total} (epoch {len(self.history) + 1}), "
            f"learning rate {rate:.6g}; lower --learning-rate or raise --warmup-epochs"
        )


@torch.inference_mode()
def top1(model: nn.Module, loader: Loader, device: torch.device) -> float:
    """Return the share of labeled images in percent whose largest logit is the label's; leaves `model` in eval mode."""
    model.eval()
    hits = images = 0
    for batch in loader:
        assert batch.labels is not None
        logits = model(batch.images.to(device))
        hits += int((logits.argmax(dim=1) == batch.labels.to(device)).sum())
        images += len(batch.images)
    return 100 * hits / images
