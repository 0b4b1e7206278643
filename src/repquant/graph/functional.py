"""Operators in place, views and normalizations of an exported graph as a second trace would write them, without it."""

import operator
from typing import Any

import torch
from torch import SymInt, fx

from repquant.graph.arguments import arguments

aten = torch.ops.aten
_RESHAPES = {aten.flatten.using_ints, aten.unflatten.int, aten.view.default}
_DROPOUTS = {aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default}
_LAYERS = {
    aten.batch_norm.default,
    aten.conv1d.default,
    aten.conv2d.default,
    aten.conv2d.padding,
    aten.conv3d.default,
    aten.conv_transpose2d.input,
    aten.linear.default,
}


def functional_graph(graph: fx.Graph) -> fx.Graph | None:
    """Return a graph of functional operators that computes the same; None where that takes another trace.

    The result is what `ExportedProgram.run_decompositions({})` gives, which takes twice the time of the export itself.
    It holds where each operator is functional already, has a functional twin and writes on a tensor that nothing else
    reads, or is one of the few that are written otherwise: normalizations, and views of which the shape is known.

    Args:
        graph: of `ExportedProgram.module()` before any decomposition; it is not changed.
    """
    places = {node: place for place, node in enumerate(graph.nodes)}
    writer = _Writer(graph)
    for node in graph.nodes:
        if node.op != "call_function":
            writer.copy(node, node.target)
        elif node.target is aten.batch_norm.default and arguments(node)["training"] is False:
            writer.normalization(node)
        elif node.target in _RESHAPES:
            if not writer.reshape(node):
                return None
        elif node.target is operator.getitem or _is_functional(node.target) or _is_idle_dropout(node):
            writer.copy(node, node.target)
        else:
            twin = _twin(node)
            if twin is None or not _is_last_reader(node, places):
                return None
            writer.copy(node, twin)
    return writer.graph


class _Writer:
    """Writes nodes with the names that a trace gives them: those of the operators, numbered."""

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = fx.Graph()
        self.graph.set_codegen(graph._codegen)
        self._new: dict[fx.Node, fx.Node] = {}
        self._last_input: fx.Node | None = None
        self._sizes: dict[str, tuple[fx.Node, int]] = {}  # symbol -> the input and the dimension that have it
        self._size_nodes: dict[str, fx.Node] = {}

    def copy(self, node: fx.Node, target: Any) -> None:
        args, kwargs = fx.map_arg((node.args, node.kwargs), self._new.__getitem__)
        name = node.name if node.op != "call_function" else _name(target)
        self._new[node] = self._create(node, node.op, target, args, kwargs, name)
        if node.op == "placeholder":
            self._last_input = self._new[node]
            shape = node.meta["val"].shape if isinstance(node.meta.get("val"), torch.Tensor) else ()
            for dimension, size in enumerate(shape):
                if isinstance(size, SymInt):
                    self._sizes.setdefault(str(size), (self._new[node], dimension))

    def normalization(self, node: fx.Node) -> None:
        values = arguments(node)
        names = ("input", "weight", "bias", "running_mean", "running_var", "momentum", "eps")
        args = fx.map_arg(tuple(values[name] for name in names), self._new.__getitem__)
        target = aten._native_batch_norm_legit_no_training.default
        norm = self._create(node, "call_function", target, args, {}, _name(target))
        norm.meta["val"] = (node.meta["val"], None, None)
        self._new[node] = self._create(node, "call_function", operator.getitem, (norm, 0), {}, "getitem")

    def reshape(self, node: fx.Node) -> bool:
        """Write a view by the shape that it has; return False where a size is computed from others."""
        shape = [self._size(size) for size in node.meta["val"].shape]
        if None in shape:
            return False
        target = aten.view.default
        args = (self._new[node.args[0]], shape)  # type: ignore[index]
        self._new[node] = self._create(node, "call_function", target, args, {}, _name(target))
        return True

    def _size(self, size: int | SymInt) -> int | fx.Node | None:
        if isinstance(size, int):
            return size
        symbol = str(size)
        if symbol not in self._sizes:
            return None
        if symbol not in self._size_nodes:
            assert self._last_input is not None
            with self.graph.inserting_after(self._last_input):
                node = self.graph.call_function(aten.sym_size.int, self._sizes[symbol])
            node.meta = {"val": size, "nn_module_stack": {}}
            self._size_nodes[symbol] = node
        return self._size_nodes[symbol]

    def _create(self, source: fx.Node, *what: Any) -> fx.Node:
        node = self.graph.create_node(*what)
        node.meta = dict(source.meta)
        return node


def _name(target: Any) -> str:
    return str(target.overloadpacket.__name__ if isinstance(target, torch._ops.OpOverload) else target.__name__)


def _is_functional(target: Any) -> bool:
    """Whether a trace keeps an operator as it is."""
    if not _is_aten(target) or target._schema.is_mutable or target is aten.sym_size.int:
        return False
    return not _is_composite(target) or not (_is_view(target) or torch.Tag.maybe_aliasing_or_mutating in target.tags)


def _is_idle_dropout(node: fx.Node) -> bool:
    return node.target in _DROPOUTS and arguments(node)["train"] is False


def _is_aten(target: Any) -> bool:
    return isinstance(target, torch._ops.OpOverload) and target.namespace == "aten"


def _is_composite(target: Any) -> bool:
    return bool(target.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd))


def _is_view(target: Any) -> bool:
    return any(argument.alias_info is not None for argument in target._schema.arguments)


def _makes_a_tensor(target: Any) -> bool:
    """Whether an operator surely gives a tensor of its own; composite ones may return what they are given."""
    return target in _LAYERS or (_is_aten(target) and not _is_view(target) and not _is_composite(target))


def _twin(node: fx.Node) -> Any:
    """Return the operator that gives what one in place writes; None if there is none of the same arguments."""
    if not _is_aten(node.target) or _is_composite(node.target):
        return None
    target: Any = node.target
    name = target.overloadpacket.__name__
    if not name.endswith("_") or name in ("copy_", "fill_", "zero_"):
        return None
    twin = getattr(getattr(aten, name[:-1], None), target._overloadname, None)
    if twin is None or not _is_functional(twin):
        return None
    arguments_of = [[(item.name, str(item.type)) for item in each._schema.arguments] for each in (target, twin)]
    return twin if arguments_of[0] == arguments_of[1] else None


def _is_last_reader(node: fx.Node, places: dict[fx.Node, int]) -> bool:
    """Whether an operator in place writes on a tensor of its own that no other node reads afterwards, or as a view."""
    written = node.args[0]
    if not isinstance(written, fx.Node) or not (_makes_a_tensor(written.target) or _twin(written) is not None):
        return False
    before, after = written.meta["val"], node.meta["val"]
    if before.dtype != after.dtype or before.shape != after.shape:
        return False
    others = [user for user in written.users if user is not node]
    return all(places[user] < places[node] and _makes_a_tensor(user.target) for user in others)
