"""Which layers do most harm when they are quantized: the ones to keep in float, if it has to be."""

from collections.abc import Callable, Iterable

import torch
from torch import fx

from repquant.errors import InputError
from repquant.graph.alternatives import run_alternatives
from repquant.graph.run import Batch, batch_size, run
from repquant.methods.divergence import Comparison, compare
from repquant.methods.points import find_points
from repquant.methods.rounded import Rounded


@torch.inference_mode()
def rank_layers(
    graph: fx.GraphModule,
    rounded: Rounded,
    batches: Iterable[Batch],
    on_batch: Callable[[int], None] = lambda _: None,
) -> tuple[str, ...]:
    """Return the names of the quantized layers, those first that change the outputs most by themselves.

    With p layers a batch costs about p/2 + 2 passes of the float network: `sensitivity.measure_sensitivity` tells more
    and takes twice as many, and half of them simulated. The change is `Divergence.harm`.

    Args:
        graph: from `capture`.
        rounded: the same network, rounded.
        batches: see `graph.run.inputs_of`; labels are not needed.
        on_batch: called with the number of images after each batch.

    Raises:
        InputError: no batch came, or one does not fit the network.
        FloatingPointError: an output is NaN or infinite where that of the float network is not.
    """
    layers = {point.node: point for point in find_points(graph, rounded) if point.integers is not None}
    alone = {node: Comparison(f"the network with {point.name} quantized alone") for node, point in layers.items()}
    alternatives = {node: {node: point.in_integers} for node, point in layers.items()}
    images = 0
    for batch in batches:
        reference = run(graph, batch)
        run_alternatives(graph, batch, {}, alternatives, compare(alone, reference))
        count = batch_size(graph, batch)
        images += count
        on_batch(count)
    if images == 0:
        raise InputError("there are no images to rank layers with; give at least 1")
    harm = {point.name: alone[node].result().harm for node, point in layers.items()}
    return tuple(sorted(harm, key=lambda name: -harm[name]))
