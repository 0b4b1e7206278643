"""Calls that change nothing, taken out of a graph; and two spellings of one operator made one."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from repquant.graph.arguments import arguments
from repquant.graph.constants import Constant

aten = torch.ops.aten

# They return their input where shape, dtype and device stay.
_COPIES = {
    aten.alias.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.detach.default,
    aten.lift_fresh_copy.default,
    aten.expand.default,
    aten._to_copy.default,
    aten.to.device,
    aten.to.dtype,
    aten.to.dtype_layout,
    aten.type_as.default,
}
_RESHAPES = {aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.flatten.using_ints}
_NEUTRAL = {
    aten.add.Tensor: 0,
    aten.add.Scalar: 0,
    aten.sub.Tensor: 0,
    aten.sub.Scalar: 0,
    aten.mul.Tensor: 1,
    aten.mul.Scalar: 1,
    aten.div.Tensor: 1,
    aten.div.Scalar: 1,
}
_ORDERED = {aten.sub.Tensor, aten.sub.Scalar, aten.div.Tensor, aten.div.Scalar}
_DROPOUTS = {aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default}
_ASSERTIONS = {
    aten._assert_scalar.default,
    aten._assert_tensor_metadata.default,
    aten.sym_constrain_range.default,
    aten.sym_constrain_range_for_size.default,
}


def remove_noops(graph: fx.Graph) -> None:
    """Take assertions and calls that return their first input out of a functional graph, in place.

    Updates of the caller's own inputs go too: the graph leaves its inputs as they are. Views become reshapes, which
    don't depend on the strides that a removed copy would have made.
    """
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target in _ASSERTIONS:
            graph.erase_node(node)
        elif node.target is aten.copy_.default or _writes_everything(node):
            node.replace_all_uses_with(node.args[1])
            graph.erase_node(node)
        elif node.op == "call_function" and _is_noop(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.target in (aten.view.default, aten._unsafe_view.default):
            node.target = aten.reshape.default
        elif node.target is aten.constant_pad_nd.default:
            values = arguments(node)
            node.target = aten.pad.default
            node.args = (values["self"], values["pad"], "constant", values["value"])


def remove_neutral(graph: fx.Graph, constants: Mapping[fx.Node, Constant]) -> None:
    """Take out, in place, products with constants that are all 1 and sums with those that are all 0.

    ONNX Runtime takes them out too, and then fuses less of the quantizers around them.
    """
    for node in list(graph.nodes):
        neutral = _NEUTRAL.get(node.target)
        if neutral is None or node in constants:
            continue
        first, second = node.args[:2]
        pairs = [(first, second)] if node.target in _ORDERED else [(first, second), (second, first)]
        for value, other in pairs:
            constant = constants[other].plain if isinstance(other, fx.Node) and other in constants else None
            if (
                isinstance(value, fx.Node)
                and isinstance(constant, Tensor)
                and _same_kind(value.meta.get("val"), node.meta.get("val"))
                and bool((constant == neutral).all())
            ):
                node.replace_all_uses_with(value)
                graph.erase_node(node)
                break


def remove_unused(graph: fx.Graph) -> None:
    """Take out, in place, what no output needs; a functional graph has no other effects."""
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op not in ("placeholder", "output"):
            graph.erase_node(node)


def _writes_everything(node: fx.Node) -> bool:
    """Whether a node writes a whole tensor over another: what is left of an in-place operator on all of a view."""
    if node.target is not aten.slice_scatter.default or arguments(node)["step"] != 1:
        return False
    return _same_kind(arguments(node)["src"].meta["val"], node.meta["val"])


def _is_noop(node: fx.Node) -> bool:
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or not _same_kind(source.meta.get("val"), node.meta.get("val")):
        return False
    if node.target in _DROPOUTS:
        return arguments(node)["train"] is False
    if node.target is aten.slice.Tensor:
        return bool(arguments(node)["step"] == 1)
    if node.target in _NEUTRAL:
        other = node.args[1]
        return isinstance(other, int | float) and other == _NEUTRAL[node.target]
    return node.target in _COPIES or node.target in _RESHAPES


def _same_kind(before: Any, after: Any) -> bool:
    if not isinstance(before, Tensor) or not isinstance(after, Tensor):
        return False
    return (
        before.dtype == after.dtype
        and before.device == after.device
        and before.ndim == after.ndim
        and all(statically_known_true(a == b) for a, b in zip(before.shape, after.shape, strict=True))
    )
