"""One table of the operators that are understood: how each treats the grids of its operands.

An operator that the table does not hold stays in float. Layers (convolutions and linear layers, `call_module` nodes of
a captured graph) are not in the table: they have weights and always compute in integers.
"""

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Any

import torch
from torch import fx, nn

aten = torch.ops.aten


class Kind(Enum):
    """How an operator treats the grid of what it reads.

    Attributes:
        VIEW: the same values in another shape; runtimes look through it.
        MOVE: a choice of the values, or zeros beside them, so that the result lies on the grid of the operand.
        JOIN: values of several operands side by side, on one grid for all.
        CLIP: part of the operator in front of it; nothing is rounded in between.
        POINTWISE: a function of each value, computed in float or by a table.
        AVERAGE: weighted means of values of one operand.
        ADD: a sum or difference of two operands.
        PRODUCT: a product of two operands, value by value.
        MATMUL: a matrix product of two operands.
    """

    VIEW = "view"
    MOVE = "move"
    JOIN = "join"
    CLIP = "clip"
    POINTWISE = "pointwise"
    AVERAGE = "average"
    ADD = "add"
    PRODUCT = "product"
    MATMUL = "matmul"


KEEPS_GRID = frozenset({Kind.VIEW, Kind.MOVE, Kind.JOIN})
"""What these give lies on the grid of what they read."""


@dataclass(frozen=True, kw_only=True)
class Operator:
    """A row of the table.

    Attributes:
        kind: see `Kind`.
        is_homogeneous: f(c x) = c f(x) for c > 0 of each channel: channel scales pass through.
        mixes: dimensions along which values are mixed, so that they need one scale; negative, from the last. A view or
            move that mixes nothing only places values: it places their scales in the same way.
        accepts: whether the row holds for a node; another call of the same function is unknown.
    """

    kind: Kind
    is_homogeneous: bool = False
    mixes: Callable[[fx.Node], tuple[int, ...]] = lambda _: ()
    accepts: Callable[[fx.Node], bool] = lambda _: True


def _pads_zeros_or_copies(node: fx.Node) -> bool:
    mode = _argument(node, 2, "mode", "constant")
    value = _argument(node, 3, "value", None)
    return mode != "constant" or not value


def _argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _padded(node: fx.Node) -> tuple[int, ...]:
    """Return the dimensions that a pad makes longer."""
    widths = _argument(node, 1, "pad", ())
    return tuple(-1 - pair for pair in range(len(widths) // 2) if any(widths[2 * pair : 2 * pair + 2]))


def _reduced(node: fx.Node) -> tuple[int, ...]:
    """Return the dimensions that a reduction takes; all of them where it names none."""
    rank = operands(node)[0].meta["val"].ndim
    dims = _argument(node, 1, "dim", None)
    dims = [dims] if isinstance(dims, int) else dims
    return tuple(dim % rank - rank for dim in dims) if dims else tuple(range(-rank, 0))


def _is_moved(node: fx.Node) -> bool:
    row = find_operator(node)
    return row is not None and row.kind is Kind.MOVE


def _joins_no_constants(node: fx.Node) -> bool:
    parts = node.args[0]
    assert isinstance(parts, list | tuple)
    return len(parts) == len(operands(node))


def _last(count: int) -> Callable[[fx.Node], tuple[int, ...]]:
    return lambda _: tuple(range(-count, 0))


_VIEW = Operator(kind=Kind.VIEW, is_homogeneous=True)
_MOVE = Operator(kind=Kind.MOVE, is_homogeneous=True)
_MOVE_ALONG_1 = Operator(kind=Kind.MOVE, is_homogeneous=True, mixes=_last(1))
_MOVE_ALONG_2 = Operator(kind=Kind.MOVE, is_homogeneous=True, mixes=_last(2))
_POINTWISE = Operator(kind=Kind.POINTWISE)
_HOMOGENEOUS = Operator(kind=Kind.POINTWISE, is_homogeneous=True)
_AVERAGE_ALONG_1 = Operator(kind=Kind.AVERAGE, is_homogeneous=True, mixes=_last(1))
_AVERAGE_ALONG_2 = Operator(kind=Kind.AVERAGE, is_homogeneous=True, mixes=_last(2))

OPERATORS: Mapping[Any, Operator] = MappingProxyType(
    {
        **dict.fromkeys(
            (
                aten.view.default,
                aten.reshape.default,
                aten._unsafe_view.default,
                aten.flatten.using_ints,
                aten.unflatten.int,
                aten.squeeze.default,
                aten.squeeze.dim,
                aten.squeeze.dims,
                aten.unsqueeze.default,
            ),
            _VIEW,
        ),
        **dict.fromkeys(
            (
                aten.permute.default,
                aten.transpose.int,
                aten.t.default,
                aten.slice.Tensor,
                aten.select.int,
                aten.narrow.default,
                aten.index_select.default,
                aten.expand.default,
                aten.repeat.default,
                aten.flip.default,
                aten.roll.default,
                aten.chunk.default,
                aten.split.Tensor,
                aten.split_with_sizes.default,
                aten.unbind.int,
                aten.pixel_shuffle.default,
                aten.pixel_unshuffle.default,
                aten.channel_shuffle.default,
            ),
            _MOVE,
        ),
        **dict.fromkeys((aten.max_pool1d.default, aten.upsample_nearest1d.vec), _MOVE_ALONG_1),
        **dict.fromkeys(
            (
                aten.max_pool2d.default,
                aten.adaptive_max_pool2d.default,
                aten.upsample_nearest2d.vec,
                aten.upsample_nearest2d.default,
                aten._upsample_nearest_exact2d.vec,
            ),
            _MOVE_ALONG_2,
        ),
        aten.amax.default: Operator(kind=Kind.MOVE, is_homogeneous=True, mixes=_reduced),
        operator.getitem: Operator(
            kind=Kind.VIEW, is_homogeneous=True, accepts=lambda node: _is_moved(operands(node)[0])
        ),
        aten.pad.default: Operator(kind=Kind.MOVE, is_homogeneous=True, mixes=_padded, accepts=_pads_zeros_or_copies),
        aten.constant_pad_nd.default: Operator(
            kind=Kind.MOVE, is_homogeneous=True, mixes=_padded, accepts=lambda node: not _argument(node, 2, "value", 0)
        ),
        aten.cat.default: Operator(kind=Kind.JOIN, is_homogeneous=True, accepts=_joins_no_constants),
        aten.stack.default: Operator(kind=Kind.JOIN, is_homogeneous=True, accepts=_joins_no_constants),
        aten.relu.default: Operator(kind=Kind.CLIP, is_homogeneous=True),
        aten.relu6.default: Operator(kind=Kind.CLIP),
        aten.hardtanh.default: Operator(kind=Kind.CLIP),
        aten.clamp.default: Operator(kind=Kind.CLIP),
        aten.clamp_min.default: Operator(kind=Kind.CLIP),
        **dict.fromkeys(
            (
                aten.leaky_relu.default,
                aten.prelu.default,
                aten.mul.Scalar,
                aten.div.Scalar,
                aten.neg.default,
            ),
            _HOMOGENEOUS,
        ),
        **dict.fromkeys(
            (
                aten.silu.default,
                aten.hardswish.default,
                aten.hardsigmoid.default,
                aten.sigmoid.default,
                aten.tanh.default,
                aten.gelu.default,
                aten.elu.default,
                aten.mish.default,
                aten.softplus.default,
                aten.add.Scalar,
                aten.sub.Scalar,
                aten.rsub.Scalar,
                aten.div.Tensor,
            ),
            _POINTWISE,
        ),
        **dict.fromkeys((aten.avg_pool1d.default, aten.adaptive_avg_pool1d.default), _AVERAGE_ALONG_1),
        **dict.fromkeys(
            (
                aten.avg_pool2d.default,
                aten.adaptive_avg_pool2d.default,
                aten.upsample_bilinear2d.vec,
                aten.upsample_bilinear2d.default,
            ),
            _AVERAGE_ALONG_2,
        ),
        aten.mean.dim: Operator(kind=Kind.AVERAGE, is_homogeneous=True, mixes=_reduced),
        aten.add.Tensor: Operator(kind=Kind.ADD, is_homogeneous=True),
        aten.sub.Tensor: Operator(kind=Kind.ADD, is_homogeneous=True),
        aten.mul.Tensor: Operator(kind=Kind.PRODUCT),
        aten.matmul.default: Operator(kind=Kind.MATMUL),
        aten.bmm.default: Operator(kind=Kind.MATMUL),
    }
)

LAYERS: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.Linear)
"""The layers that compute in integers, as exact types: a subclass may compute something else."""


def layer_of(graph: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """Return the layer that a node calls, or None where it calls none that computes in integers."""
    if node.op != "call_module":
        return None
    module = graph.get_submodule(str(node.target))
    return module if type(module) in LAYERS else None


def layer_nodes(graph: fx.GraphModule) -> dict[str, fx.Node]:
    """Return the nodes that call layers by the name of the layer, in the order of computation."""
    return {str(node.target): node for node in graph.graph.nodes if layer_of(graph, node) is not None}


def find_operator(node: fx.Node) -> Operator | None:
    """Return the row for a node, or None for one that is not understood.

    An addition, product or quotient with a constant is a function of the other operand alone.
    """
    if node.op != "call_function":
        return None
    row = OPERATORS.get(node.target)
    if row is None or not operands(node) or not row.accepts(node):
        return None
    is_binary = row.kind in (Kind.ADD, Kind.PRODUCT, Kind.MATMUL) or node.target is aten.div.Tensor
    if not is_binary:
        return row
    if len(list(_tensor_arguments(node))) == len(node.args[:2]):
        return row if node.target is not aten.div.Tensor else None
    if row.kind is Kind.MATMUL:
        return None
    is_divisor = node.target is aten.div.Tensor and operands(node)[0] is not node.args[0]
    return _POINTWISE if row.kind is Kind.ADD or is_divisor else _HOMOGENEOUS


def operands(node: fx.Node) -> tuple[fx.Node, ...]:
    """Return the nodes whose float values an operator or layer computes with, without constants and sizes."""
    if node.op == "call_module":
        return tuple(argument for argument in node.args if isinstance(argument, fx.Node))
    return tuple(_tensor_arguments(node))


def _tensor_arguments(node: fx.Node) -> Iterator[fx.Node]:
    first = node.args[0] if node.args else None
    arguments = first if isinstance(first, list | tuple) else node.args[:2]
    for argument in arguments:
        if isinstance(argument, fx.Node) and argument.op != "get_attr" and holds_floats(argument):
            yield argument


def holds_floats(node: fx.Node) -> bool:
    """Whether the value of a node is a tensor of floats, or has one among several."""
    value = node.meta.get("val")
    values = value if isinstance(value, list | tuple) else [value]
    return any(isinstance(item, torch.Tensor) and item.is_floating_point() for item in values)
