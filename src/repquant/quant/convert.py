"""Which tensors of a deploy model are quantized, and the model in which they are."""

import copy
import difflib
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from torch import nn

from repquant.errors import InputError
from repquant.models.blocks import Residual, ShortcutBlock, ShortcutTerm, SqueezeExcite, Term
from repquant.numerics.affine import Grid, grid_for_range
from repquant.simulation.integers import weight_grid
from repquant.simulation.layers import QuantizedConv2d, QuantizedInput, QuantizedLayer, QuantizedLinear
from repquant.targets.target import Target

Range = tuple[float, float]
ModuleT = TypeVar("ModuleT", bound=nn.Module)


Layer = nn.Conv2d | nn.Linear


def layer_pairs(model: nn.Module, quantized: nn.Module) -> dict[str, tuple[Layer, QuantizedLayer]]:
    """Return the layers that are quantized, by their name in the float model, in float and in integers."""

    def layers(module: nn.Module) -> list[tuple[str, Layer]]:
        """In the order of registration, which quantization keeps; names change inside wrapped blocks."""
        return [(name, layer) for name, layer in module.named_modules() if isinstance(layer, Layer)]

    return {
        name: (layer, counterpart)
        for (name, layer), (_, counterpart) in zip(layers(model), layers(quantized), strict=True)
        if isinstance(counterpart, QuantizedConv2d | QuantizedLinear)
    }


def layer_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of all convolutions and linear layers, in the order of registration."""
    return tuple(name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear))


def resolve_keep_float(model: nn.Module, keep_float: Collection[str]) -> frozenset[str]:
    """Return the layer names that `first`, `last`, layer names and names of enclosing modules stand for.

    Raises:
        InputError: a name that is neither; the nearest one is named.
    """
    layers = layer_names(model)
    shortcuts = {"first": layers[:1], "last": layers[-1:]}
    kept: set[str] = set()
    for name in keep_float:
        matches = shortcuts.get(name) or [layer for layer in layers if f"{layer}.".startswith(f"{name}.")]
        if not matches:
            near = difflib.get_close_matches(name, ["first", "last", *layers], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; layers are {', '.join(layers)}"
            raise InputError(f"no layer is named {name!r}{hint}")
        kept.update(matches)
    # The identity branch is part of a block's convolution, wherever it is computed.
    for name, block in model.named_modules():
        if isinstance(block, ShortcutBlock) and f"{name}.conv" in kept and isinstance(block.shortcut, nn.Conv2d):
            kept.add(f"{name}.shortcut")
    return frozenset(kept)


def quantization_points(model: nn.Module, keep_float: Collection[str] = ()) -> dict[str, nn.Module]:
    """Return the modules whose input is quantized, by name.

    They are the convolutions and linear layers outside `keep_float`, the average pools (so that the layer before one
    can end in integers too), the squeeze-and-excite blocks, whose input has two consumers and is quantized once, and
    the summands of blocks with a shortcut.

    Raises:
        InputError: `keep_float` has a name that is not known, or leaves no layer.
    """
    kept = resolve_keep_float(model, keep_float)
    points: dict[str, nn.Module] = {}
    inner_pools = {id(module.pool) for module in model.modules() if isinstance(module, SqueezeExcite)}
    for name, module in model.named_modules():
        is_layer = isinstance(module, Layer) and name not in kept
        is_pool = isinstance(module, nn.AdaptiveAvgPool2d) and id(module) not in inner_pools
        is_summand = isinstance(module, Residual | Term) and f"{name.rpartition('.')[0]}.conv" not in kept
        if is_layer or is_pool or is_summand or isinstance(module, SqueezeExcite):
            points[name] = module
    if not any(isinstance(module, Layer) for module in points.values()):
        raise InputError("nothing is left to quantize: every layer is kept in float")
    return points


def rounded_points(
    model: nn.Module, ranges: Collection[str], target: Target, keep_float: Collection[str]
) -> dict[str, nn.Module]:
    """Return the quantization points whose input the target rounds.

    Raises:
        InputError: one of them is not in `ranges`, or no layer is left.
    """
    points = {
        name: module
        for name, module in quantization_points(model, keep_float).items()
        if not isinstance(module, Term)
        or target.quantized_terms == "all"
        or (target.quantized_terms == "shortcut" and isinstance(module, ShortcutTerm))
    }
    if missing := sorted(set(points) - set(ranges)):
        raise InputError(f"no activation range for {', '.join(missing)}; calibrate the same model with the same layers")
    return points


def quantize_model(
    model: ModuleT,
    ranges: Mapping[str, Range | Grid],
    target: Target,
    keep_float: Collection[str] = (),
    weight_grids: Mapping[str, Grid] = MappingProxyType({}),
) -> ModuleT:
    """Return a copy of a deploy model in which every quantization point has its fake-quantized form.

    Args:
        model: the float model; it is not changed.
        ranges: (low, high) of the input of each quantization point, or its grid.
        target: the schemes.
        keep_float: layers that stay in float, see `resolve_keep_float`.
        weight_grids: grids of layers whose weights lie on a grid already; the others get the range of their weights.

    Raises:
        InputError: a point without a range, or no layer to quantize.
    """
    points = rounded_points(model, ranges, target, keep_float)
    memo: dict[int, Any] = {}
    # Innermost first: the copy of a squeeze-and-excite block then holds its convolutions' quantized forms.
    for name, module in sorted(points.items(), key=lambda item: -item[0].count(".")):
        given = ranges[name]
        grid = given if isinstance(given, Grid) else grid_for_range(*given, target.activation)
        if isinstance(module, nn.Conv2d | nn.Linear):
            weights = weight_grids.get(name) or weight_grid(module.weight, module.bias, grid.scale, target.weight)
            make = QuantizedConv2d if isinstance(module, nn.Conv2d) else QuantizedLinear
            memo[id(module)] = make(module, grid, weights)  # type: ignore[arg-type]
        else:
            memo[id(module)] = QuantizedInput(copy.deepcopy(module, memo), grid)
    return copy.deepcopy(model, memo).eval()
