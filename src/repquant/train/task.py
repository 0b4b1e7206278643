"""What is trained and what for: the part of a training that differs between float training and others."""

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from repquant.errors import InputError
from repquant.models.blocks import RepVGGBlock
from repquant.models.repopt import gradient_multipliers
from repquant.train.gradient_scaling import apply_gradient_scaling
from repquant.train.losses import classification_loss, custom_l2
from repquant.train.optim import decayed_and_free
from repquant.train.recipe import Recipe


@dataclass(frozen=True)
class Objective:
    """What one forward pass gives.

    Attributes:
        total: the scalar that is minimized.
        loss: the scalar mean loss that reports show.
        logits: (N, K).
    """

    total: Tensor
    loss: Tensor
    logits: Tensor


class Task(Protocol):
    """What is trained and what for.

    Attributes:
        model: trained in place; its state dict is what checkpoints hold. In a training of several processes the Trainer
            replaces its `nn.BatchNorm2d` modules, with the same parameters and buffers: look them up when they are
            needed. In training mode its output may be whatever `objective` expects; in eval mode it is logits (N, K).
    """

    model: nn.Module

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimizer with the keys "params", "weight_decay" and, if it is not 1, "lr_scale"."""

    def prepare_optimizer(self, optimizer: Optimizer) -> None:
        """Called once, with the optimizer of `parameter_groups`: the place for hooks on its steps."""

    def before_step(self, step: int, total_steps: int) -> None:
        """Called on every process before the forward pass of each step, counted from 0 over the whole training.

        What it does to the model must follow from the arguments and the model's state dict alone, or a resumed
        training is another one. The model is in training mode, and may be changed here in parts.
        """

    def objective(self, network: nn.Module, images: Tensor, labels: Tensor) -> Objective:
        """What to minimize on a batch; under autocast, if the recipe says so.

        Args:
            network: the model, or what wraps it for distributed training; its forward pass is called once.
            images: normalized, (N, 3, H, W).
            labels: (N,), or (N, K) with the shares of the classes when the recipe mixes images.
        """


class FloatTask:
    """Classification, with the custom L2 if the recipe has it.

    A model that returns a pair in training mode, logits and a list of the logits of auxiliary heads, has the losses of
    these added, times `recipe.auxiliary_weight`.

    Raises:
        InputError: the recipe has the custom L2 and the model no RepVGG block, or freezes more parts than there are.
    """

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        self.model = model
        self._recipe = recipe
        if recipe.custom_l2 and not any(isinstance(module, RepVGGBlock) for module in model.modules()):
            raise InputError(
                f"`custom_l2` is for the blocks of RepVGG, and {recipe.arch or recipe.model} has none; "
                "pass `custom_l2=False`"
            )
        for part in self._frozen_parts():
            part.requires_grad_(False)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Kernels with the recipe's weight decay, the rest without."""
        decayed, free = decayed_and_free(self.model, self._recipe.custom_l2)
        return [{"params": decayed, "weight_decay": self._recipe.weight_decay}, {"params": free, "weight_decay": 0.0}]

    def prepare_optimizer(self, optimizer: Optimizer) -> None:
        """Give a RepOpt-VGG the gradient multipliers of its kernels; other networks have none."""
        apply_gradient_scaling(optimizer, gradient_multipliers(self.model))

    def before_step(self, step: int, total_steps: int) -> None:  # noqa: ARG002
        """Keep the statistics of frozen parts."""
        for part in self._frozen_parts():
            if part.training:
                part.eval()

    def objective(self, network: nn.Module, images: Tensor, labels: Tensor) -> Objective:
        """Cross-entropy with smoothed labels, and what the recipe adds to it."""
        recipe = self._recipe
        output = network(images)
        logits, auxiliary = output if isinstance(output, tuple) else (output, ())
        loss = classification_loss(logits, labels, recipe.label_smoothing)
        total = loss
        for head in auxiliary:
            total = total + recipe.auxiliary_weight * classification_loss(head, labels, recipe.label_smoothing)
        if recipe.custom_l2:
            total = total + recipe.weight_decay / 2 * custom_l2(self.model)
        return Objective(total, loss, logits)

    def _frozen_parts(self) -> list[nn.Module]:
        if not self._recipe.freeze_stages:
            return []
        if self._recipe.model:
            raise InputError("`freeze_stages` is for architectures; in a network of your own, freeze what you want")
        parts = [self.model.get_submodule("stem"), *self.model.get_submodule("stages").children()]
        if self._recipe.freeze_stages > len(parts):
            raise InputError(
                f"`freeze_stages={self._recipe.freeze_stages}` was given; allowed is from 0 to {len(parts)} for "
                f"{self._recipe.arch}"
            )
        return parts[: self._recipe.freeze_stages]
