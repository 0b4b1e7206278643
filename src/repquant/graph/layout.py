"""Where a network is rounded on a target: which tensors lie on a grid, and who reads them.

A tensor is rounded where somebody needs its integers: a layer, or an operator that the target computes in integers. The
values that an operator only moves or joins lie on the grid of what it reads, so they share one.
"""

import difflib
import operator
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from torch import fx, nn

from repquant.errors import InputError
from repquant.graph.operators import KEEPS_GRID, Kind, find_operator, holds_floats, layer_nodes, layer_of, operands
from repquant.graph.selections import behind_selections
from repquant.targets.target import Target


@dataclass(frozen=True, kw_only=True)
class RoundedTensor:
    """Values that lie on one grid.

    Attributes:
        name: of its first source.
        sources: nodes that compute the values; what is read from their moved or joined forms is the same values.
        members: the sources and all nodes that move or join them, as far as their integers are needed.
        readers: nodes that compute with the integers, layers by the name of the layer.
    """

    name: str
    sources: tuple[str, ...]
    members: frozenset[str]
    readers: tuple[str, ...]

    @property
    def description(self) -> str:
        """Who reads it, for a person."""
        return f"input of {self.readers[0]}" if self.readers else f"output of {self.name}"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The rounded tensors of a network, and what stays in float.

    Attributes:
        tensors: by name, in the order of computation.
        layers: layer name -> name of the tensor that it reads; the layers that compute in integers.
        roundings: node name -> names of the operands that it reads on their grids; layers are not among them, they
            round what they read.
        floats: layer or node name -> why it computes in float.
    """

    tensors: Mapping[str, RoundedTensor]
    layers: Mapping[str, str]
    roundings: Mapping[str, tuple[str, ...]]
    floats: Mapping[str, str]

    def tensor_of(self, node: str) -> RoundedTensor:
        """Return the rounded tensor that a node's value belongs to."""
        return next(tensor for tensor in self.tensors.values() if node in tensor.members)


def find_layout(graph: fx.GraphModule, target: Target, keep_float: Collection[str] = ()) -> Layout:
    """Return where a captured network is rounded.

    What is behind a selection (see `graph.selections`) stays in float.

    Args:
        graph: from `capture`.
        target: the runtime.
        keep_float: what stays in float, see `resolve_keep_float`.

    Raises:
        InputError: `keep_float` has a name that is not known, or leaves no layer.
    """
    kept = {name: f"behind the selection {selection}" for name, selection in behind_selections(graph).items()}
    kept |= dict.fromkeys(resolve_keep_float(graph, keep_float), "kept in float as asked")
    return _Finder(graph, target, kept).layout()


def layer_names(graph: fx.GraphModule) -> tuple[str, ...]:
    """Return the names of all layers in the order in which they compute."""
    return tuple(layer_nodes(graph))


def resolve_keep_float(graph: fx.GraphModule, keep_float: Collection[str]) -> frozenset[str]:
    """Return the names of layers and operators that `first`, `last`, their names and names of modules stand for.

    `first` and `last` are the layers that compute first and last.

    Raises:
        InputError: a name that is none of these; the nearest one is named.
    """
    layers = layer_names(graph)
    known = (*layers, *(node.name for node in graph.graph.nodes if find_operator(node) is not None))
    shortcuts = {"first": layers[:1], "last": layers[-1:]}
    kept: set[str] = set()
    for name in keep_float:
        matches = shortcuts.get(name) or [other for other in known if f"{other}.".startswith(f"{name}.")]
        if not matches:
            near = difflib.get_close_matches(name, ["first", "last", *known], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; layers are {', '.join(layers)}"
            raise InputError(f"no layer is named {name!r}{hint}")
        kept.update(matches)
    return frozenset(kept)


class _Finder:
    """Looks at the nodes from the last to the first: who needs integers decides what is rounded."""

    def __init__(self, graph: fx.GraphModule, target: Target, kept: Mapping[str, str]) -> None:
        self._graph = graph
        self._target = target
        self._kept = kept
        self._needed: set[fx.Node] = set()
        self._layers: dict[fx.Node, str] = {}
        self._floats: dict[str, str] = {}
        self._nodes: list[fx.Node] = list(graph.graph.nodes)
        self._position = {node: position for position, node in enumerate(self._nodes)}

    def layout(self) -> Layout:
        for node in self._nodes:
            self._classify_layer(node)
        if not self._layers:
            raise InputError("nothing is left to quantize: every layer stays in float")
        for node in reversed(self._nodes):
            self._needed.update(self._needs(node))
        tensors = self._tensors()
        by_node = {member: name for name, tensor in tensors.items() for member in tensor.members}
        return Layout(
            tensors=tensors,
            layers={name: by_node[operands(node)[0].name] for node, name in self._layers.items()},
            roundings={
                node.name: read
                for node in self._nodes
                if (read := tuple(dict.fromkeys(operand.name for operand in self._reads_rounded(node))))
            },
            floats=self._floats,
        )

    def _classify_layer(self, node: fx.Node) -> None:
        if node.op == "call_module":
            name = str(node.target)
            module = self._graph.get_submodule(name)
            if name in self._kept:
                self._floats[name] = self._kept[name]
            elif layer_of(self._graph, node) is None:
                self._floats[name] = f"{type(module).__name__} is not among the layers that are understood"
            else:
                self._layers[node] = name
        elif node.op == "call_function" and any(operands(node)) and holds_floats(node):
            if node.name in self._kept:
                self._floats[node.name] = self._kept[node.name]
            elif find_operator(node) is None and node.target is not operator.getitem:
                self._floats[node.name] = f"{node.target} is not among the operators that are understood"

    def _kind(self, node: fx.Node) -> Kind | None:
        row = find_operator(node) if node.name not in self._kept else None
        return None if row is None else row.kind

    def _needs(self, node: fx.Node) -> Iterator[fx.Node]:
        """Yield the operands whose integers a node asks for."""
        if node in self._layers:
            yield operands(node)[0]
            return
        kind = self._kind(node)
        if kind in KEEPS_GRID and node not in self._needed:
            return
        if kind is Kind.POINTWISE and not self._target.rounds_before_pointwise:
            return
        if kind is None:
            yield from (operand for operand in self._float_operands(node) if self._ends_in_convolution(operand))
            return
        if kind is Kind.CLIP:
            return
        accumulator = self._accumulator(node) if kind is Kind.ADD else None
        yield from (operand for operand in operands(node) if operand is not accumulator)

    def _float_operands(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """Return what an operator that is not understood reads; nothing for outputs, layers and what is kept."""
        is_kept = node.name in self._kept or str(node.target) in self._kept
        computes = node.op in ("call_function", "call_module") and node not in self._layers and holds_floats(node)
        return operands(node) if computes and not is_kept else ()

    def _ends_in_convolution(self, node: fx.Node) -> bool:
        """Whether a value is what a convolution gives that the target computes in integers only if it is rounded."""
        if not self._target.rounds_before_pointwise:
            return False
        if node in self._layers:
            return isinstance(layer_of(self._graph, node), nn.Conv1d | nn.Conv2d)
        passes = self._kind(node) in (*KEEPS_GRID, Kind.CLIP)
        return passes and any(self._ends_in_convolution(operand) for operand in operands(node))

    def _accumulator(self, node: fx.Node) -> fx.Node | None:
        """Return the summand that a layer keeps in 32 bits until the sum is known."""
        if self._target.quantized_terms == "all":
            return None
        layers = [operand for operand in operands(node) if operand in self._layers and len(operand.users) == 1]
        return max(layers, key=self._position.__getitem__) if layers else None

    def _reads_rounded(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """Return the operands that an operator reads on their grids, whether it asked for that or not.

        What is rounded for one reader is rounded for all operators that are understood, so that a runtime need not keep
        it in float beside the integers. A view is left to those who read it, unless a layer's value has other readers
        too: it would stay in float for the view alone.
        """
        kind = self._kind(node)
        if kind is None and self._target.rounds_before_pointwise:
            return tuple(operand for operand in self._float_operands(node) if operand in self._needed)
        if kind is Kind.VIEW and node in self._needed:
            return tuple(operand for operand in operands(node) if operand in self._layers and len(operand.users) > 1)
        if kind is None or kind is Kind.VIEW:
            return ()
        accumulator = self._accumulator(node) if kind is Kind.ADD else None
        return tuple(operand for operand in operands(node) if operand in self._needed and operand is not accumulator)

    def _tensors(self) -> dict[str, RoundedTensor]:
        parent: dict[fx.Node, fx.Node] = {}

        def root(node: fx.Node) -> fx.Node:
            while parent.get(node, node) is not node:
                node = parent[node]
            return node

        needed = [node for node in self._nodes if node in self._needed]
        for node in needed:
            if self._kind(node) in KEEPS_GRID:
                for operand in operands(node):
                    first, second = sorted((root(node), root(operand)), key=self._position.__getitem__)
                    parent[second] = first
        classes: dict[fx.Node, list[fx.Node]] = {}
        for node in needed:
            classes.setdefault(root(node), []).append(node)
        tensors = {}
        for members in classes.values():
            sources = tuple(node.name for node in members if self._kind(node) not in KEEPS_GRID)
            tensors[sources[0]] = RoundedTensor(
                name=sources[0],
                sources=sources,
                members=frozenset(node.name for node in members),
                readers=tuple(self._readers(members)),
            )
        return tensors

    def _readers(self, members: list[fx.Node]) -> Iterator[str]:
        for node in self._nodes:
            if not any(operand in members for operand in operands(node)):
                continue
            if node in self._layers:
                yield self._layers[node]
            elif self._kind(node) not in (None, *KEEPS_GRID):
                yield node.name
