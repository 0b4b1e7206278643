"""Fixed seeds, and random batch normalization, so that no statistic hides behind its initial value."""

from collections.abc import Callable
from typing import TypeVar

import pytest
import torch
from torch import nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def _randomize(module: ModuleT, seed: int = 0) -> ModuleT:
    """Draw each BN's statistics and affine parameters, negative gammas included; return it in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for bn in module.modules():
        if isinstance(bn, nn.BatchNorm2d):
            for tensor, low, high in (
                (bn.weight, -1.5, 1.5),
                (bn.bias, -0.5, 0.5),
                (bn.running_mean, -0.5, 0.5),
                (bn.running_var, 0.2, 2.0),
            ):
                tensor.data.uniform_(low, high, generator=generator)
    return module.eval()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def randomize() -> Callable[[ModuleT], ModuleT]:
    return _randomize
