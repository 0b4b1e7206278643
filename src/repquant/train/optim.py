"""The optimizer on its parameter groups, and the learning rate of a step."""

from math import cos, pi
from typing import Any

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from repquant.models.blocks import RepVGGBlock
from repquant.train.recipe import Recipe


def decayed_and_free(model: nn.Module, custom_l2: bool) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Split the trained parameters into those with weight decay and those without.

    Kernels and matrices decay; biases and batch normalization, the tensors of one dimension, do not. With `custom_l2`
    the 3x3 and 1x1 kernels of the blocks do not either: the term of `losses.custom_l2` replaces their decay.

    The official code differs in two details that its authors report to make no difference, or do not mention: it
    doubles the learning rate of biases, and decays the gamma of the identity's batch normalization.
    """
    replaced = {
        id(branch.conv.weight)
        for block in model.modules()
        if custom_l2 and isinstance(block, RepVGGBlock)
        for branch in (block.conv3x3, block.conv1x1)
    }
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            group = decayed if parameter.ndim > 1 and id(parameter) not in replaced else free
            group.append(parameter)
    return decayed, free


def make_optimizer(groups: list[dict[str, Any]], recipe: Recipe) -> Optimizer:
    """Return the recipe's optimizer on groups of parameters; `set_learning_rate` gives it the one of each step."""
    if recipe.optimizer == "adamw":
        return AdamW(groups, lr=recipe.peak_learning_rate, betas=(recipe.momentum, 0.999), fused=True)
    return SGD(groups, lr=recipe.peak_learning_rate, momentum=recipe.momentum, fused=True)


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Give each group its learning rate: `rate` times the group's "lr_scale", which is 1 where there is none."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)


def learning_rate(step: int, *, total_steps: int, warmup_steps: int, peak: float) -> float:
    """Return the learning rate of a step, counted from 0.

    It rises linearly and reaches `peak` in the last of the `warmup_steps`; then it is
    peak / 2 * (1 + cos(pi * progress)) with progress from 0 at the first step after the warm-up to 1 after the last
    step of the training (Loshchilov and Hutter, "SGDR", ICLR 2017, without restarts).
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return peak / 2 * (1 + cos(pi * progress))
