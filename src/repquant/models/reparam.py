"""A training-time model in, a new deploy model out."""

import copy
from typing import Any, TypeVar

import torch
from torch import nn

from repquant.errors import InputError
from repquant.models.blocks import DeployBlock, TrainingBlock
from repquant.models.fuse import equivalent_kernel
from repquant.models.plus import AuxiliaryHeads

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def reparameterize(model: ModuleT) -> ModuleT:
    """Return a copy in which each `TrainingBlock`, at any depth, is the `DeployBlock` that computes the same.

    Auxiliary classifiers are left out. The copy is in evaluation mode and equals `model.eval()` up to rounding. All
    other modules are copied as they are, and so is a model that is in deploy form already. The input is not changed.
    Hooks on a replaced block stay behind with its branches.

    Raises:
        InputError: the model has no RepVGG block of either form.
    """
    blocks = [module for module in model.modules() if isinstance(module, TrainingBlock | DeployBlock)]
    if not blocks:
        raise InputError(f"{type(model).__name__} has no RepVGGBlock; build it from repquant.models.blocks")
    # The memo makes deepcopy put the fused block wherever the branches were, under every name they had.
    memo: dict[int, Any] = {id(block): _fused(block) for block in blocks if isinstance(block, TrainingBlock)}
    memo |= {id(module): AuxiliaryHeads() for module in model.modules() if isinstance(module, AuxiliaryHeads)}
    return copy.deepcopy(model, memo).eval()


@torch.no_grad()
def _fused(block: TrainingBlock) -> DeployBlock:
    kernel, bias = equivalent_kernel(block)
    with torch.device("meta"):
        fused = DeployBlock(block.spec)
    fused.conv.weight = nn.Parameter(kernel)
    fused.conv.bias = nn.Parameter(bias)
    fused.se = copy.deepcopy(block.se)
    fused.post_se = copy.deepcopy(block.post_se)
    return fused
