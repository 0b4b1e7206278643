"""A float model whose weights have been rounded already, by a method that looks at more than each weight alone."""

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import nn

from repquant.numerics.affine import Grid
from repquant.quant.convert import Layer, Range, quantize_model, resolve_keep_float
from repquant.targets.target import Target

ModuleT = TypeVar("ModuleT", bound=nn.Module)


@dataclass(frozen=True)
class Rounded(Generic[ModuleT]):
    """What `quantize_model` needs to find the integers that a rounding method chose.

    Attributes:
        model: copy of the float model; weights of rounded layers lie on their grids, biases may have changed.
        weight_grids: layer name -> grid of its weight; a layer without one gets that of its largest weights.
    """

    model: ModuleT
    weight_grids: Mapping[str, Grid]

    def quantized(self, ranges: Mapping[str, Range], target: Target, keep_float: Collection[str] = ()) -> ModuleT:
        """Return the quantized model: the arguments and errors are those of `quantize_model`."""
        return quantize_model(self.model, ranges, target, keep_float, self.weight_grids)


@torch.no_grad()
def with_float_layers(rounded: Rounded[ModuleT], model: ModuleT, keep_float: Collection[str]) -> Rounded[ModuleT]:
    """Return what was rounded, with layers that stay in float after all as they were before.

    The others keep the integers that were chosen when these layers were rounded too.

    Args:
        rounded: from a rounding method; it is not changed.
        model: what it was made from.
        keep_float: layers, see `resolve_keep_float`.

    Raises:
        InputError: a name that is not known.
    """
    restored = copy.deepcopy(rounded.model)
    for name in resolve_keep_float(model, keep_float):
        layer, original = restored.get_submodule(name), model.get_submodule(name)
        assert isinstance(layer, Layer)
        layer.load_state_dict(original.state_dict())
    return Rounded(restored, rounded.weight_grids)
