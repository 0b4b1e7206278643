"""Loss-aware ranges: for each tensor that of the candidates which changes the outputs of the network least.

The calibrators look at one tensor by itself. What its rounding does to the outputs depends on what follows: an average
keeps what clipping takes, which errs in one direction, and takes off roundings, which err in both. So it is measured:
the divergence of the outputs from those of the float network with this tensor alone on a grid of that range. Nahshan et
al. ("Loss Aware Post-training Quantization", Machine Learning, 2021) choose ranges by the loss of the network too, all
together by a search of many passes; here each is chosen by itself, from what the calibrators propose.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import inf
from typing import Any

import torch
from torch import Tensor, fx

from repquant.choices import CALIBRATORS
from repquant.errors import InputError
from repquant.graph.alternatives import Compute, run_alternatives
from repquant.graph.layout import Layout, RoundedTensor
from repquant.graph.operators import KEEPS_GRID, find_operator, layer_nodes
from repquant.graph.plan import Range
from repquant.graph.run import Batch, batch_size, run
from repquant.methods.divergence import Comparison
from repquant.numerics.affine import grid_for_range
from repquant.numerics.histogram import Histogram
from repquant.numerics.ranges import search_range
from repquant.simulation.layers import FakeQuantize
from repquant.targets.target import Target

FIRST = "mse"
"""The calibrator whose range is kept where no other one is better."""

NARROW_PERCENTILE = 99.9
"""Of a candidate that clips more than the calibrators do."""

ALIKE = 0.02
"""Ranges whose ends differ by less, as a share of the range, are tried once."""

IMAGES = 64
"""That ranges are compared on, at least: whole batches are read."""


def candidate_ranges(histogram: Histogram, target: Target, *, percentile: float = 99.99) -> tuple[Range, ...]:
    """Return the ranges that are tried for a tensor, that of `FIRST` before the others; none is tried twice."""
    settings = [(name, percentile) for name in dict.fromkeys((FIRST, *CALIBRATORS))]
    settings.append(("percentile", min(percentile, NARROW_PERCENTILE)))
    found = [search_range(name, histogram, target.activation, percentile=given) for name, given in settings]
    distinct: list[Range] = []
    for ends in found:
        if not any(_are_alike(ends, other) for other in distinct):
            distinct.append(ends)
    return tuple(distinct)


def _are_alike(one: Range, other: Range) -> bool:
    """Whether no end moves by more than `ALIKE` of the range."""
    span = max(one[1] - one[0], other[1] - other[0])
    return all(abs(a - b) <= ALIKE * span for a, b in zip(one, other, strict=True))


@torch.inference_mode()
def choose_ranges(
    graph: fx.GraphModule,
    layout: Layout,
    candidates: Mapping[str, Sequence[Range]],
    target: Target,
    batches: Iterable[Batch],
    on_batch: Callable[[int], None] = lambda _: None,
) -> dict[str, Range]:
    """Return for each tensor the candidate with which the outputs change least when it alone is rounded.

    With c candidates in all, a batch costs about c/2 + 2 passes of the float network. Memory holds one batch. What
    nothing reads rounded gets its first candidate, and a candidate with which an output is NaN is not taken.

    Args:
        graph: from `methods.ptq.prepare`.
        layout: where it will be rounded.
        candidates: tensor name -> ranges, at least one; of several that change the outputs alike, the first is taken.
        target: the schemes.
        batches: see `graph.run.inputs_of`; labels are not needed. All of them are read.
        on_batch: called with the number of images after each batch.

    Raises:
        InputError: no batch came, or one does not fit the network.
    """
    alternatives: dict[str, Mapping[str, Compute]] = {}
    tried: dict[str, dict[str, Range]] = {}  # tensor -> alternative -> range
    for name, tensor in layout.tensors.items():
        readers = _readers(graph, layout, tensor)
        if len(candidates[name]) > 1 and readers:
            tried[name] = {f"{name} up to {low:g}, {high:g}": (low, high) for low, high in candidates[name]}
            alternatives |= {key: _rounding(graph, readers, ends, target) for key, ends in tried[name].items()}
    comparisons = {key: Comparison(f"the network with {key} rounded alone") for key in alternatives}
    broken: set[str] = set()

    def see(name: str, outputs: Sequence[Tensor]) -> None:
        try:
            comparisons[name].add(reference, outputs)
        except FloatingPointError:
            broken.add(name)

    images = 0
    for batch in batches:
        reference = run(graph, batch)
        run_alternatives(graph, batch, {}, alternatives, see)
        count = batch_size(graph, batch)
        images += count
        on_batch(count)
    if images == 0:
        raise InputError("there are no images to compare ranges on; give at least 1")
    chosen = {name: ranges[0] for name, ranges in candidates.items()}
    for name, ranges in tried.items():
        harm = {key: inf if key in broken else comparisons[key].result().harm for key in ranges}
        chosen[name] = ranges[min(harm, key=harm.__getitem__)]
    return chosen


def _readers(graph: fx.GraphModule, layout: Layout, tensor: RoundedTensor) -> dict[fx.Node, tuple[int, ...]]:
    """Return the nodes that read a tensor rounded, and at which places among their arguments.

    Those that only move or join values are none: who reads theirs, reads the tensor.
    """
    layers = {node: name for name, node in layer_nodes(graph).items() if name in layout.layers}
    readers: dict[fx.Node, tuple[int, ...]] = {}
    for node in graph.graph.nodes:
        row = find_operator(node)
        places: tuple[int, ...]
        if node in layers:
            places = (0,) if layout.layers[layers[node]] == tensor.name else ()
        elif row is not None and row.kind in KEEPS_GRID:
            places = ()
        else:
            rounded = tensor.members.intersection(layout.roundings.get(node.name, ()))
            arguments = enumerate(node.args)
            places = tuple(place for place, x in arguments if isinstance(x, fx.Node) and x.name in rounded)
        if places:
            readers[node] = places
    return readers


def _rounding(
    graph: fx.GraphModule, readers: Mapping[fx.Node, tuple[int, ...]], ends: Range, target: Target
) -> dict[str, Compute]:
    """Return how readers compute with what they read rounded."""
    quantize = FakeQuantize(grid_for_range(*ends, target.activation))

    def rounding(compute: Compute, places: tuple[int, ...]) -> Compute:
        def rounded(*args: Any, **kwargs: Any) -> Any:
            read = [quantize(x) if place in places else x for place, x in enumerate(args)]
            return compute(*read, **kwargs)

        return rounded

    return {node.name: rounding(_compute(graph, node), places) for node, places in readers.items()}


def _compute(graph: fx.GraphModule, node: fx.Node) -> Compute:
    compute: Compute = graph.get_submodule(str(node.target)) if node.op == "call_module" else node.target  # type: ignore[assignment]
    return compute
