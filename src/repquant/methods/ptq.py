"""Post-training quantization from end to end: prepare a float network, read ranges, round.

Every step is a function of its own elsewhere; this is their order. A network is prepared once, whatever calibrators
follow: channels are scaled, then identity branches set apart, both without changing what it computes.
"""

import itertools
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from pathlib import Path

from torch import fx

from repquant.graph.layout import find_layout
from repquant.graph.plan import Plan
from repquant.graph.run import Batch
from repquant.methods.bias_correction import correct_biases
from repquant.methods.equalize import equalize
from repquant.methods.feedback import round_weights
from repquant.methods.identity import identity_layers, split_identity
from repquant.methods.method import PtqMethod
from repquant.methods.reconstruct import check_checkpoint, reconstruct
from repquant.methods.rounded import Rounded
from repquant.methods.weight_grids import find_weight_grids
from repquant.simulation.network import simulate
from repquant.targets.target import Target


def prepare(
    graph: fx.GraphModule,
    method: PtqMethod,
    target: Target,
    batches: Iterable[Batch],
    keep_float: Collection[str] = (),
    on_batch: Callable[[int], None] = lambda _: None,
) -> fx.GraphModule:
    """Return a network that computes the same and loses less when it is rounded.

    Args:
        graph: from `capture`; it is not changed.
        method: how.
        target: what it will run on.
        batches: see `graph.run.inputs_of`, for the equalization "noise".
        keep_float: layers that will stay in float, see `graph.layout.resolve_keep_float`; no identity branch is set
            apart from them.
        on_batch: called with the number of images after each batch.

    Raises:
        InputError: a name in `keep_float` that is not known, or what equalization can't use.
    """
    if method.equalization != "none":
        layout = find_layout(graph, target, keep_float)
        graph = equalize(graph, method.equalization, batches, target, layout, method.shortcut, on_batch)
    if method.identity == "fused":
        return graph
    return split_identity(graph, method.identity, target.weight, identity_layers(graph, keep_float))


def round_graph(
    graph: fx.GraphModule,
    plan: Plan,
    method: PtqMethod,
    batches: Iterable[Batch],
    on_progress: Callable[[int], None] = lambda _: None,
    checkpoint: Path | None = None,
) -> Rounded:
    """Return a prepared network with rounded weights and biases that fit them, still in float.

    Args:
        graph: from `prepare`; it is not changed.
        plan: for this network.
        method: its rounding is used here: "feedback" and "learned" round the weights for the images, "nearest" corrects
            the biases with them.
        batches: see `graph.run.inputs_of`; they are read once. Without any, weights are rounded to the nearest and
            biases stay as they are.
        on_progress: called with what was done since the last call; `progress_total` says of how much.
        checkpoint: file that keeps the layers which learned rounding has finished, for a run that is interrupted.

    Raises:
        InputError: a batch that does not fit the network, or a checkpoint of another run.
    """
    nearest = _to_nearest(graph, plan, method)
    if method.rounding == "nearest":
        sums = simulate(nearest.graph, nearest.plan, ends=False)
        corrected = correct_biases(graph, sums, batches, on_progress)
        return _to_nearest(corrected, plan, method)
    first = next(iterator := iter(batches), None)
    if first is None:
        return nearest
    rest = itertools.chain([first], iterator)
    if method.rounding == "feedback":
        return round_weights(graph, nearest.plan, rest, on_layer=on_progress)
    return reconstruct(graph, nearest.plan, rest, method.reconstruction, on_step=on_progress, checkpoint=checkpoint)


def _to_nearest(graph: fx.GraphModule, plan: Plan, method: PtqMethod) -> Rounded:
    return Rounded(graph, replace(plan, weight_grids=find_weight_grids(graph, method.weight_ranges, plan)))


def check_rounding_checkpoint(
    graph: fx.GraphModule, plan: Plan, method: PtqMethod, batches: Iterable[Batch], checkpoint: Path
) -> None:
    """Refuse a checkpoint of another run, at once and not when `round_graph` comes to it.

    The arguments are those of `round_graph`.

    Raises:
        InputError: the file is damaged, or was written for other arguments.
    """
    check_checkpoint(graph, _to_nearest(graph, plan, method).plan, batches, method.reconstruction, checkpoint)


def progress_total(plan: Plan, method: PtqMethod, images: int) -> int:
    """Return what `round_graph` reports to `on_progress` in all: images, layers or steps, as the rounding has it."""
    if method.rounding == "nearest":
        return images
    layers = len(plan.layout.layers)
    return layers if method.rounding == "feedback" else layers * method.reconstruction.steps
