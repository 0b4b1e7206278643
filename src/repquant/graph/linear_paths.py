"""Which tensors a node is an affine map of, read from the graph backwards."""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, fx, nn

from repquant.graph.affine import Affine, NotOneMapError, convolved, identity, padded, pooled, scaled, shifted, summed
from repquant.graph.arguments import arguments
from repquant.graph.devices import device_of

aten = torch.ops.aten

SUMS: dict[Any, int] = {aten.add.Tensor: 1, aten.sub.Tensor: -1}
_SHIFTS: dict[Any, int] = {aten.add.Tensor: 1, aten.add.Scalar: 1, aten.sub.Tensor: -1, aten.sub.Scalar: -1}
_FACTORS: set[Any] = {aten.mul.Tensor, aten.mul.Scalar}
_QUOTIENTS = {aten.div.Tensor, aten.div.Scalar}
_COMMUTING = {aten.add.Tensor, aten.mul.Tensor}


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A path from `root`, with its convolutions, that is no single map, and why."""

    root: fx.Node
    layers: tuple[str, ...]
    reason: str


Path = Affine | Refused


def paths_to(graph_module: fx.GraphModule, node: fx.Node, *, is_inside: bool = True) -> dict[fx.Node, Path]:
    """Return what the node computes, as a map of itself and of each tensor behind it; the nearest first.

    A tensor that others use too ends the way: what lies behind it has to be computed anyhow. The node itself counts as
    used by one only if it `is_inside` of what is merged.
    """
    if not is_feature_map(node):
        return {}
    paths: dict[fx.Node, Path] = {node: identity(node, device_of(graph_module))}
    if is_inside and len(node.users) > 1:
        return paths
    if node.op == "call_module":
        layer = graph_module.get_submodule(str(node.target))
        if type(layer) is nn.Conv2d:
            name = str(node.target)
            paths |= _through(graph_module, node.args[0], lambda path: convolved(path, layer, name), (name,))
    elif node.op == "call_function":
        terms = terms_of(node)
        if terms:
            paths |= _sums(graph_module, terms)
        else:
            source, step = _step(graph_module, node)
            if step is not None:
                paths |= _through(graph_module, source, step)
    return paths


def is_feature_map(node: Any) -> TypeGuard[fx.Node]:
    """Whether a node's value is (N, C, H, W), floating, with known sizes but for the batch."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    if not isinstance(value, Tensor) or value.ndim != 4 or not value.is_floating_point():
        return False
    return all(isinstance(size, int) for size in value.shape[1:])


def terms_of(node: fx.Node) -> list[tuple[int, fx.Node]]:
    """Return the (sign, node) that an addition or subtraction of equal shapes adds; empty for any other node."""
    if node.target not in SUMS or arguments(node)["alpha"] != 1:
        return []
    left, right = node.args[:2]
    if not (_is_input(left) and _is_input(right)):
        return []
    if left.meta["val"].shape != right.meta["val"].shape:
        return []
    return [(1, left), (SUMS[node.target], right)]


def _through(
    graph_module: fx.GraphModule, source: Any, step: Callable[[Affine], Affine], layers: tuple[str, ...] = ()
) -> dict[fx.Node, Path]:
    def taken(path: Path) -> Path:
        if isinstance(path, Refused):
            return path
        try:
            return step(path)
        except NotOneMapError as reason:
            return Refused(root=path.root, layers=path.layers + layers, reason=str(reason))

    return {root: taken(path) for root, path in paths_to(graph_module, source).items()}


def _sums(graph_module: fx.GraphModule, terms: list[tuple[int, fx.Node]]) -> dict[fx.Node, Path]:
    (_, left), (sign, right) = terms
    behind_left, behind_right = paths_to(graph_module, left), paths_to(graph_module, right)
    return {
        root: added([(1, behind_left[root]), (sign, behind_right[root])])
        for root in behind_left
        if root in behind_right
    }


def added(terms: list[tuple[int, Path]]) -> Path:
    """Return the signed sum of paths from one root, or the first reason why it is none."""
    total: Affine | None = None
    for sign, path in terms:
        if isinstance(path, Refused):
            return path
        signed = path if sign == 1 else scaled(path, path.bias.new_tensor([-1.0]))
        try:
            total = signed if total is None else summed(total, signed)
        except NotOneMapError as reason:
            assert total is not None
            return Refused(root=path.root, layers=total.layers + path.layers, reason=str(reason))
    assert total is not None
    return total


def scales_or_shifts(node: fx.Node) -> bool:
    """Whether a node is an operator that multiplies or adds a constant where it can."""
    return node.target is aten.neg.default or node.target in _FACTORS | _QUOTIENTS | _SHIFTS.keys()


def is_scale_layer(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node is a convolution that only scales and shifts each channel, as a normalization of its own is."""
    layer = graph_module.get_submodule(str(node.target)) if node.op == "call_module" else None
    return type(layer) is nn.Conv2d and tuple(layer.weight.shape[1:]) == (1, 1, 1) and layer.stride == (1, 1)


def _step(graph_module: fx.GraphModule, node: fx.Node) -> tuple[Any, Callable[[Affine], Affine] | None]:
    """Return the input of an affine operator and what it does to a map; (None, None) for any other operator."""
    if node.target is aten.avg_pool2d.default:
        return node.args[0], _pooling(node)
    if node.target is aten.pad.default:
        return node.args[0], _padding(node)
    if node.target is aten.neg.default:
        return node.args[0], lambda path: scaled(path, path.bias.new_tensor([-1.0]))
    if not scales_or_shifts(node):
        return None, None
    source, other = node.args[:2]
    if not _is_input(source) and node.target in _COMMUTING:
        source, other = other, source
    value = _per_channel(graph_module, other, node)
    if value is None or not _is_input(source):
        return None, None
    if node.target in _FACTORS:
        return source, lambda path: scaled(path, value)
    if node.target in _QUOTIENTS:
        return source, lambda path: scaled(path, 1 / value)
    shift = value * _SHIFTS[node.target] * arguments(node)["alpha"]
    return source, lambda path: shifted(path, shift)


def _is_input(node: Any) -> TypeGuard[fx.Node]:
    return is_feature_map(node) and node.op != "get_attr"


def _per_channel(graph_module: fx.GraphModule, other: Any, node: fx.Node) -> Tensor | None:
    """Return a constant operand as (1,) or (C,) in float64; None for what is neither."""
    value = node.meta["val"]
    if isinstance(other, bool | int | float):
        return torch.tensor([float(other)], dtype=torch.float64, device=device_of(graph_module))
    if not isinstance(other, fx.Node) or other.op != "get_attr":
        return None
    constant: Tensor = operator.attrgetter(str(other.target))(graph_module).double()
    if constant.numel() == 1:
        return constant.reshape(1)
    shape = (1,) * (4 - constant.ndim) + tuple(constant.shape)
    return constant.reshape(-1) if shape == (1, value.shape[1], 1, 1) else None


def _pooling(node: fx.Node) -> Callable[[Affine], Affine] | None:
    values = arguments(node)
    size = _pair(values["kernel_size"])
    stride = _pair(values["stride"]) if values["stride"] else size
    padding, divisor = _pair(values["padding"]), values["divisor_override"]

    def step(path: Affine) -> Affine:
        if any(padding) and not values["count_include_pad"] and not divisor:
            raise NotOneMapError("its average pooling does not count the padding: at the borders it divides by less")
        if values["ceil_mode"]:
            raise NotOneMapError("its average pooling has ceil_mode, which reads beyond the padding")
        return pooled(path, size, stride, padding, divisor)

    return step


def _padding(node: fx.Node) -> Callable[[Affine], Affine] | None:
    values = arguments(node)
    widths = values["pad"]
    if values["mode"] != "constant" or not 2 <= len(widths) <= 4 or not all(isinstance(w, int) for w in widths):
        return None
    left, right, top, bottom = (*widths, 0, 0)[:4]
    return lambda path: padded(path, (top, left), (bottom, right), float(values["value"] or 0))


def _pair(values: Sequence[int]) -> tuple[int, int]:
    return (values[0], values[-1])
