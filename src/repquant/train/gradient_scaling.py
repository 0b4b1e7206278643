"""Gradient re-parameterization: an optimizer steps a plain kernel as if it had branches with constant scales.

The method is RepOptimizer's (Ding et al., ICLR 2023); `repquant.models.repopt` has the networks and the multipliers.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from repquant.errors import InputError
from repquant.models.repopt import GradientMultiplier


def apply_gradient_scaling(optimizer: Optimizer, multipliers: Mapping[nn.Parameter, GradientMultiplier]) -> None:
    """Make each later `optimizer.step()` multiply the gradients or updates of these parameters.

    SGD multiplies the gradient, squared scales, before weight decay and momentum see it. AdamW multiplies its update by
    the scales, and leaves weight decay as it is. Parameters without a gradient stay as they are.

    The hooks are no part of the optimizer's state dict: call this for every new optimizer. The scales are read at the
    first step, so a checkpoint may be loaded between.

    Args:
        optimizer: it steps without a closure, whose gradients would come too late.
        multipliers: of `repquant.models.repopt.gradient_multipliers`; nothing happens if it is empty.

    Raises:
        InputError: an optimizer for which no equivalent is known.
    """
    if not multipliers:
        return
    if isinstance(optimizer, SGD):
        _scale_gradients(optimizer, multipliers)
    elif isinstance(optimizer, AdamW):
        _scale_updates(optimizer, multipliers)
    else:
        raise InputError(f"RepOptimizer is defined for SGD and AdamW, and {type(optimizer).__name__} was given")


class _Factors:
    """The factors of each parameter, expanded when they are first needed."""

    def __init__(self, multipliers: Mapping[nn.Parameter, GradientMultiplier], power: int) -> None:
        self._multipliers = multipliers
        self._power = power
        self._expanded: dict[nn.Parameter, Tensor] = {}

    def of(self, parameter: nn.Parameter) -> Tensor | None:
        """Return (O, I, 3, 3), None for a parameter that is not scaled."""
        if parameter not in self._expanded and parameter in self._multipliers:
            self._expanded[parameter] = self._multipliers[parameter].expand(parameter.shape[1], self._power)
        return self._expanded.get(parameter)


def _scale_gradients(optimizer: SGD, multipliers: Mapping[nn.Parameter, GradientMultiplier]) -> None:
    factors = _Factors(multipliers, power=2)

    def before(optimizer: Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                factor = factors.of(parameter)
                if factor is not None and parameter.grad is not None:
                    parameter.grad.mul_(factor)

    optimizer.register_step_pre_hook(before)


def _scale_updates(optimizer: AdamW, multipliers: Mapping[nn.Parameter, GradientMultiplier]) -> None:
    factors = _Factors(multipliers, power=1)
    decayed: dict[nn.Parameter, Tensor] = {}

    def before(optimizer: Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter in multipliers and parameter.grad is not None:
                    decayed[parameter] = parameter.detach() * (1 - group["lr"] * group["weight_decay"])

    @torch.no_grad()
    def after(*_: Any) -> None:
        for parameter, start in decayed.items():
            factor = factors.of(parameter)
            assert factor is not None
            parameter.copy_(start + (parameter - start) * factor)
        decayed.clear()

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)
