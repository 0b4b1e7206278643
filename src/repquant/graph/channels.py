"""Which channels of a captured network may be scaled without changing what it computes.

A layer absorbs scales: the rows of its weight and its bias are multiplied by those of its output, the columns divided
by those of its input. Operators in between pass them on, tie the scales of several channels to one, or pin them to 1:
what enters or leaves the network, or an operator that isn't homogeneous, is not scaled.

Every channel behind a layer starts with a scale of its own, a number. A number travels through the graph in a tensor of
labels, with the rank of the value that it scales and size 1 along each dimension where the scale doesn't change. Views
and moves place the labels as they place the values. The numbers that meet in an addition, or in a mean, are one.
"""

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from repquant.graph.copies import copy_graph
from repquant.graph.grouping import channel_dim, grouped
from repquant.graph.operators import KEEPS_GRID, Kind, find_operator, layer_of, operands
from repquant.numerics.equalization import scales_at


@dataclass(frozen=True, kw_only=True)
class LayerChannels:
    """Indices (I,) and (O,) of the scales of a layer's input and output channels; -1 is pinned."""

    inputs: Tensor
    outputs: Tensor


@dataclass(frozen=True, kw_only=True)
class Channels:
    """The free scales of a network.

    Attributes:
        count: how many there are.
        layers: layer name -> its channels, in the order of computation.
        values: node name -> indices that broadcast to the node's value, size 1 along dimensions where they don't
            change; nodes whose value is one tensor.
    """

    count: int
    layers: Mapping[str, LayerChannels]
    values: Mapping[str, Tensor]


def find_channels(graph: fx.GraphModule) -> Channels:
    """Return the free scales of a captured network.

    Args:
        graph: from `capture`.
    """
    return _Labeller(graph).channels()


@torch.no_grad()
def apply_scales(graph: fx.GraphModule, channels: Channels, scales: Tensor) -> fx.GraphModule:
    """Return a copy whose channels are multiplied by scales; it computes the same.

    Args:
        graph: from `capture`; it is not changed.
        channels: of this graph.
        scales: (count,), positive.
    """
    scaled = copy_graph(graph)
    for name, indices in channels.layers.items():
        scale_layer(scaled.get_submodule(name), scales_at(scales, indices.inputs), scales_at(scales, indices.outputs))
    return scaled


@torch.no_grad()
def scale_layer(layer: nn.Module, inputs: Tensor, outputs: Tensor) -> None:
    """Let a layer, in place, expect an input that is multiplied by scales (I,), and multiply its output by (O,)."""
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    before, after = (scales.to(weight.device, weight.dtype) for scales in (inputs, outputs))
    changed = weight.detach().clone(memory_format=torch.contiguous_format)
    kernel = grouped(layer, changed)
    kernel.div_(before.view(len(kernel), 1, -1, 1)).mul_(after.view(len(kernel), -1, 1, 1))
    weight.copy_(changed)
    if bias is not None:
        assert isinstance(bias, Tensor)
        bias.mul_(after)


class _Numbers:
    """Numbers of scales, of which some turn out to be one; number 0 is the scale that is pinned to 1."""

    def __init__(self) -> None:
        self._count = 1
        self._left: list[Tensor] = []
        self._right: list[Tensor] = []

    def fresh(self, count: int) -> Tensor:
        """Return (count,) numbers that nobody has."""
        numbers = torch.arange(self._count, self._count + count)
        self._count += count
        return numbers

    def tie(self, left: Tensor, right: Tensor) -> None:
        """Make the numbers in two tensors that broadcast one, place by place."""
        left, right = torch.broadcast_tensors(left, right)
        self._left.append(left.flatten())
        self._right.append(right.flatten())

    def pin(self, labels: Tensor) -> None:
        self.tie(labels, torch.zeros((), dtype=torch.long))

    def solve(self) -> tuple[int, Tensor]:
        """Return how many free scales there are, and for every number the index of its scale, -1 for the pinned."""
        zero = torch.zeros(1, dtype=torch.long)
        left, right = torch.cat([zero, *self._left]), torch.cat([zero, *self._right])
        lowest = torch.arange(self._count)
        while True:  # every number takes the lowest that it is tied to, and the one that this number has taken
            both = torch.minimum(lowest[left], lowest[right])
            lower = lowest.scatter_reduce(0, lowest[left], both, "amin").scatter_reduce(0, lowest[right], both, "amin")
            lower = lower[lower]
            if torch.equal(lower, lowest):
                break
            lowest = lower
        free, indices = lowest.unique(return_inverse=True)  # ordered: 0, the pinned, comes first
        return len(free) - 1, indices - 1


class _Labeller:
    def __init__(self, graph: fx.GraphModule) -> None:
        self._graph = graph
        self._numbers = _Numbers()
        self._labels: dict[fx.Node, Any] = {}
        self._shapes = {node: _size(node.meta.get("val")) for node in graph.graph.nodes}
        self._layers: dict[str, LayerChannels] = {}

    def channels(self) -> Channels:
        for node in self._graph.graph.nodes:
            labels = self._labels_of(node)
            self._labels[node] = self._without_free_dimensions(node, labels) if isinstance(labels, Tensor) else labels
        count, index = self._numbers.solve()
        return Channels(
            count=count,
            layers={
                name: LayerChannels(inputs=index[numbers.inputs], outputs=index[numbers.outputs])
                for name, numbers in self._layers.items()
            },
            values={
                node.name: _compressed(index[labels])
                for node, labels in self._labels.items()
                if isinstance(labels, Tensor)
            },
        )

    def _labels_of(self, node: fx.Node) -> Any:
        if (layer := layer_of(self._graph, node)) is not None:
            return self._through_layer(node, layer)
        row = find_operator(node)
        if row is not None and row.kind is Kind.PRODUCT and len(operands(node)) == 2:
            return self._through_product(node)
        if row is None or not row.is_homogeneous:
            return self._pinned(node)
        if row.kind is Kind.ADD:
            left, right = (self._labels[source] for source in operands(node))
            self._numbers.tie(left, right)
            return torch.minimum(left, right)
        mixed = row.mixes(node)
        if row.kind in KEEPS_GRID and not mixed:
            return self._through_move(node)
        if len(operands(node)) > 1:  # a slope that the network computes
            return self._pinned(node)
        return self._through_mixture(node, mixed) if mixed else self._same(node, operands(node)[0])

    def _same(self, node: fx.Node, source: fx.Node) -> Tensor:
        """Return the labels of a value that broadcasts to a node's."""
        labels: Tensor = self._labels[source]
        return labels.view([1] * (len(self._shapes[node]) - labels.ndim) + list(labels.shape))

    def _pinned(self, node: fx.Node) -> Any:
        """Pin all that a node reads and gives."""
        for source in node.all_input_nodes:
            for labels in _flat(self._labels.get(source)):
                self._numbers.pin(labels)
        shape = self._shapes.get(node)
        if isinstance(shape, torch.Size):
            return torch.zeros([1] * len(shape), dtype=torch.long)
        if isinstance(shape, list):
            return [torch.zeros([1] * len(part), dtype=torch.long) for part in shape]
        return None

    def _through_layer(self, node: fx.Node, layer: nn.Module) -> Tensor:
        (source,) = operands(node)
        dim, rank = channel_dim(layer), len(self._shapes[node])
        inputs = self._tied(self._labels[source], tuple(other for other in range(-rank, 0) if other != dim))
        count = self._shapes[source][dim]
        outputs = self._numbers.fresh(self._shapes[node][dim])
        name = str(node.target)
        self._layers[name] = LayerChannels(inputs=inputs.flatten().expand(count), outputs=outputs)
        return outputs.view([-1 if other == dim else 1 for other in range(-rank, 0)])

    def _through_product(self, node: fx.Node) -> Tensor:
        """Pass the scales of one factor on, and pin the other: a gate, or the smaller, or the second."""
        first, second = operands(node)
        if not self._labels[first].any() or (
            self._labels[second].any() and self._shapes[first].numel() < self._shapes[second].numel()
        ):
            first, second = second, first
        self._numbers.pin(self._labels[second])
        return self._same(node, first)

    def _through_mixture(self, node: fx.Node, mixed: tuple[int, ...]) -> Tensor:
        (source,) = operands(node)
        labels = self._tied(self._labels[source], mixed)
        return labels.squeeze(mixed) if len(self._shapes[node]) < labels.ndim else labels

    def _through_move(self, node: fx.Node) -> Any:
        """Apply a view, move or join to the labels."""
        sources = operands(node)
        if node.target is operator.getitem:
            return self._labels[sources[0]][node.args[1]]
        if not any(labels.any() for source in sources for labels in _flat(self._labels[source])):
            return self._pinned(node)
        given = {source: self._labels[source].expand(self._shapes[source]) for source in sources}
        for source in node.all_input_nodes:
            if source not in given:
                value = _constant(self._graph, source) if source.op == "get_attr" else self._shapes.get(source)
                if not isinstance(value, Tensor | int):
                    return self._pinned(node)
                given[source] = value
        args, kwargs = fx.map_arg((node.args, node.kwargs), given.__getitem__)
        placed = node.target(*args, **kwargs)  # type: ignore[operator]
        return _compressed(placed) if isinstance(placed, Tensor) else [_compressed(part) for part in placed]

    def _tied(self, labels: Tensor, dims: tuple[int, ...]) -> Tensor:
        """Make the scales along dimensions one; return labels of size 1 there."""
        first = labels
        for dim in dims:
            first = first.narrow(dim, 0, 1)
        if first.shape != labels.shape:
            self._numbers.tie(labels, first)
        return first

    def _without_free_dimensions(self, node: fx.Node, labels: Tensor) -> Tensor:
        """Make the scales one along the dimensions whose size changes with the batch."""
        value = node.meta.get("val")
        if not isinstance(value, Tensor):
            return labels
        free = tuple(dim - value.ndim for dim, size in enumerate(value.shape) if not isinstance(size, int))
        return self._tied(labels, free)


def _flat(labels: Any) -> list[Tensor]:
    return [] if labels is None else [labels] if isinstance(labels, Tensor) else labels


def _compressed(labels: Tensor) -> Tensor:
    """Return labels of size 1 along each dimension where they don't change."""
    for dim in range(labels.ndim):
        first = labels.narrow(dim, 0, 1)
        if labels.shape[dim] > 1 and bool((labels == first).all()):
            labels = first
    return labels


def _constant(graph: fx.GraphModule, node: fx.Node) -> Any:
    return operator.attrgetter(str(node.target))(graph)


def _size(value: Any) -> Any:
    """Return the shape of a tensor, the shapes of several, or a number; the batch has the size of the capture."""
    if isinstance(value, Tensor):
        return torch.Size(_size(size) for size in value.shape)
    if isinstance(value, list | tuple):
        return [_size(part) for part in value]
    return value.node.hint if isinstance(value, torch.SymInt) else value
