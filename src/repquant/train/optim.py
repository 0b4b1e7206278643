"""The optimizer of the official recipe: SGD with momentum on two parameter groups, and its learning rate."""

from math import cos, pi

from torch import nn
from torch.optim import SGD

from repquant.models.blocks import RepVGGBlock
from repquant.train.recipe import Recipe


def parameter_groups(model: nn.Module, custom_l2: bool) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
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


def sgd(model: nn.Module, recipe: Recipe) -> SGD:
    """Return the optimizer; the loop sets its learning rate at each step."""
    decayed, free = parameter_groups(model, recipe.custom_l2)
    return SGD(
        [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": free, "weight_decay": 0.0}],
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
    )


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
