"""A float model whose weights have been rounded already, by a method that looks at more than each weight alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import nn

from repquant.numerics.affine import Grid

ModuleT = TypeVar("ModuleT", bound=nn.Module)


@dataclass(frozen=True)
class Rounded(Generic[ModuleT]):
    """What `quantize_model` needs to find the integers that a rounding method chose.

    Attributes:
        model: copy of the float model; weights of rounded layers lie on their grids, biases may have changed.
        weight_grids: layer name -> grid of its weight.
    """

    model: ModuleT
    weight_grids: Mapping[str, Grid]
