"""One optimizer step: forward and backward passes over the parts of a batch, and the update."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW, Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from repquant.data.loading import Batch
from repquant.errors import InputError
from repquant.train.distributed import Ranks, distribute
from repquant.train.meters import Meter
from repquant.train.optim import make_optimizer, set_learning_rate
from repquant.train.recipe import Recipe
from repquant.train.sync_batch_norm import synchronize_batch_norm
from repquant.train.task import Task


class Stepper:
    """A task with all that its steps need; see `loop.Trainer` for the arguments.

    Attributes:
        optimizer: of the task's parameter groups.
    """

    def __init__(self, task: Task, recipe: Recipe, device: torch.device, ranks: Ranks) -> None:
        self._task = task
        self._recipe = recipe
        self._device = device
        self._rank = ranks.rank
        # What tensor cores read. On the CPU, the backward pass of a RepVGG in this layout crashes (torch 2.13).
        self._layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        task.model.to(device, memory_format=self._layout)  # type: ignore[call-overload]  # the stub lacks it
        if recipe.sync_bn:
            synchronize_batch_norm(task.model, device, ranks)
        self._distributed = distribute(task.model, device, ranks, share_buffers=not recipe.sync_bn)
        self._network = compiled(self._distributed, device) if recipe.compile else self._distributed
        self.optimizer = make_optimizer(task.parameter_groups(), recipe)
        task.prepare_optimizer(self.optimizer)
        self._scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "float16")
        self._average: AveragedModel | None = None
        if recipe.ema_decay:
            averaging = get_ema_multi_avg_fn(recipe.ema_decay)
            self._average = AveragedModel(task.model, multi_avg_fn=averaging, use_buffers=True)
        self._augment: Callable[..., tuple[Tensor, Tensor]] | None = None
        if recipe.mixes_batches:
            from repquant.train.batch_augment import BatchAugmentation

            self._augment = BatchAugmentation(
                mixup=recipe.mixup,
                cutmix=recipe.cutmix,
                randaugment=recipe.randaugment,
                num_classes=recipe.num_classes,
                mean=recipe.mean,
                std=recipe.std,
            )

    @property
    def result(self) -> nn.Module:
        """The network, or the average of its weights when the recipe asks for one."""
        return self._task.model if self._average is None else self._average.module

    def take(self, batches: Iterator[Batch], step: int, total_steps: int, rate: float, meter: Meter) -> Tensor:
        """Update the weights once; return this rank's mean loss, on the device.

        Args:
            batches: the next parts of the batch are taken from here.
            step: counted from 0 over the whole training.
            total_steps: of the training.
            rate: learning rate.
            meter: counts what was trained on, and the time that the parts were waited for.
        """
        recipe, parts = self._recipe, self._recipe.accumulation_steps
        if not self._task.model.training:
            self._task.model.train()
        self._task.before_step(step, total_steps)
        set_learning_rate(self.optimizer, rate)
        # All that is random follows from the seed, the step and the rank: no random state is carried along.
        sequence = np.random.SeedSequence((recipe.seed, step, self._rank))
        torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0]))
        self.optimizer.zero_grad()
        losses = []
        for part in range(parts):
            with meter.wait():
                batch = next(batches)
            losses.append(self._accumulate(batch, meter, is_last=part == parts - 1))
        if recipe.clip_norm:
            self._scaler.unscale_(self.optimizer)
            clip_grad_norm_(self._task.model.parameters(), recipe.clip_norm)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        if self._average is not None:
            self._average.update_parameters(self._task.model)
        return torch.stack(losses).mean()

    def state(self) -> dict[str, Any]:
        """The state dicts that `restore` takes, by the names of its arguments."""
        return {
            "model": self._task.model.state_dict(),
            "average": None if self._average is None else self._average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
        }

    def restore(
        self,
        model: dict[str, Tensor],
        average: dict[str, Tensor] | None,
        optimizer: dict[str, Any],
        scaler: dict[str, Any],
    ) -> None:
        """Take over the state of another one with the same recipe; hyperparameters stay those of the recipe, but
        for the rates of groups, which may follow from where a training began.

        Raises:
            ValueError: the state is of another network or optimizer. Some of it may have been taken over.
        """
        try:
            self._task.model.load_state_dict(model)
            if self._average is not None:
                if average is None:
                    raise ValueError("the average of the weights is missing")
                self._average.load_state_dict(average)
            _require_fit(optimizer["state"], self.optimizer)
            groups = _with_rates(self.optimizer.state_dict()["param_groups"], optimizer["param_groups"])
            self.optimizer.load_state_dict({"state": optimizer["state"], "param_groups": groups})
            self._scaler.load_state_dict(scaler)
        except (AttributeError, KeyError, TypeError, RuntimeError) as error:  # what torch raises on a state of another
            raise ValueError((str(error).splitlines() or [type(error).__name__])[0]) from error

    def _accumulate(self, batch: Batch, meter: Meter, *, is_last: bool) -> Tensor:
        """Add the gradients of a part of the batch, and with the last part those of all ranks; return its mean loss."""
        recipe, images, labels = self._recipe, batch.images, batch.labels
        assert labels is not None
        if self._augment is not None:
            images, labels = self._augment(images, labels)
        images = images.contiguous(memory_format=self._layout)
        with nullcontext() if is_last else self._alone():
            precision = torch.float16 if recipe.precision == "float16" else torch.bfloat16
            with torch.autocast(self._device.type, precision, enabled=recipe.precision != "float32"):
                objective = self._task.objective(self._network, images, labels)
            self._scaler.scale(objective.total / recipe.accumulation_steps).backward()
        loss, logits = objective.loss.detach(), objective.logits.detach()
        targets = labels if labels.ndim == 1 else labels.argmax(dim=1)
        meter.add(loss, (logits.argmax(dim=1) == targets).sum(), len(images))
        return loss

    def _alone(self) -> AbstractContextManager[None]:
        """Let this rank's gradients pile up without those of the others."""
        return self._distributed.no_sync() if isinstance(self._distributed, DistributedDataParallel) else nullcontext()


def compiled(network: nn.Module, device: torch.device) -> nn.Module:
    """Return the network as torch.compile makes it, with the same parameters; the first passes compile.

    On the CPU the layout of memory stays as it is: torch.compile would choose channels_last for convolutions, whose
    backward pass ends the process there ("double free", torch 2.13).

    Raises:
        InputError: torch.compile needs a C++ compiler on the CPU, and there is none.
    """
    compiler = os.environ.get("CXX", "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise InputError(f"`compile=True` needs a C++ compiler, and there is no {compiler}; install one or pass False")
    return cast("nn.Module", torch.compile(network, options={"layout_optimization": device.type != "cpu"}))


def _require_fit(moments: Any, optimizer: Optimizer) -> None:
    """Refuse moments that are not of the optimizer's parameters."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not isinstance(moments, dict) or not moments.keys() <= set(range(len(parameters))):
        raise ValueError("the moments of the optimizer are not of these parameters")
    names = {"step", "exp_avg", "exp_avg_sq"} if isinstance(optimizer, AdamW) else {"momentum_buffer"}
    for number, moment in moments.items():
        if not moment.keys() <= names or (isinstance(optimizer, AdamW) and len(moment) < len(names)):
            raise ValueError(f"the moments of parameter {number} are not those of {type(optimizer).__name__}")
        shapes = {name: torch.Size(()) if name == "step" else parameters[number].shape for name in names}
        if not all(value is None or _is_moment(value, shapes[name]) for name, value in moment.items()):
            raise ValueError(f"moments of the optimizer do not have the shape of parameter {number}")


def _is_moment(value: Any, shape: torch.Size) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.shape == shape


def _with_rates(own: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the optimizer's own groups, with the factors on the learning rate that a checkpoint has for them."""
    rates = [group.get("lr_scale", 1.0) for group in theirs]
    if len(rates) != len(own) or not all(isinstance(rate, float) and 0 <= rate < float("inf") for rate in rates):
        raise ValueError("the parameter groups of the optimizer are others")
    return [group | ({"lr_scale": rate} if "lr_scale" in group else {}) for group, rate in zip(own, rates, strict=True)]
