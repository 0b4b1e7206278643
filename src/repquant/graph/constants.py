"""What a graph computes from constants alone, evaluated once."""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree


@dataclass(frozen=True, kw_only=True)
class Constant:
    """A value that no input changes.

    `plain` is what the network computes, in its own dtypes; `computed` the same in float64 from the start, None for a
    stored tensor. `path` is the name of a stored tensor in the user's module.
    """

    plain: Any
    computed: Any = None
    path: str | None = None

    @property
    def wide(self) -> Any:
        """The value in float64, for layers that absorb it; equal to `plain` where nothing is floating."""
        return _widened(self.plain) if self.computed is None else self.computed


def evaluate_constants(graph_module: fx.GraphModule) -> dict[fx.Node, Constant]:
    """Return the values of all nodes that depend on no input, the stored tensors among them."""
    constants: dict[fx.Node, Constant] = {}
    for node in graph_module.graph.nodes:
        if node.op == "get_attr":
            value = operator.attrgetter(str(node.target))(graph_module)
            if isinstance(value, Tensor):
                constants[node] = Constant(plain=value, path=str(node.target))
        elif _is_pure(node) and all(source in constants for source in node.all_input_nodes):
            constants[node] = _evaluated(node, constants)
    return constants


def _is_pure(node: fx.Node) -> bool:
    if node.op != "call_function":
        return False
    if isinstance(node.target, torch._ops.OpOverload):
        return not node.target._schema.is_mutable and torch.Tag.nondeterministic_seeded not in node.target.tags
    return node.target is operator.getitem


@torch.no_grad()
def _evaluated(node: fx.Node, constants: Mapping[fx.Node, Constant]) -> Constant:
    # Integers and masks come from the network's own precision: a float64 floor may differ from a float32 one.
    plain = _call(node, lambda source: constants[source].plain)
    wide = _call(node, lambda source: constants[source].wide) if _has_floats(plain) else plain
    return Constant(plain=plain, computed=pytree.tree_map(_widened, wide))


def _call(node: fx.Node, value_of: Callable[[fx.Node], Any]) -> Any:
    args, kwargs = fx.map_arg((node.args, node.kwargs), value_of)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _has_floats(value: Any) -> bool:
    leaves = pytree.tree_leaves(value)
    return any(isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in leaves)


def _widened(value: Any) -> Any:
    return value.detach().double() if isinstance(value, Tensor) and value.is_floating_point() else value
