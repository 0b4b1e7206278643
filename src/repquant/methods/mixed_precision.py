"""Mixed precision: bits for each layer's weights, so that they hold to an average and the outputs change least.

How much a layer loses is measured: the divergence of the outputs from those of the float network with the weights of
this layer alone on a grid of so many bits. The losses are taken to add up, as in HAWQ-V3 (Yao et al., "HAWQ-V3: Dyadic
Neural Network Quantization", ICML 2021), which chooses the bits by an integer linear program; here the divergence
itself takes the place of its second-order estimate, and the program is solved as the knapsack problem that it is.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from numbers import Real
from typing import cast

import torch
from torch import fx

from repquant.choices import WeightRanges
from repquant.errors import InputError, given
from repquant.graph.alternatives import Compute, run_alternatives
from repquant.graph.batches import first_images
from repquant.graph.plan import Plan
from repquant.graph.run import Batch, batch_size, run
from repquant.methods.divergence import Comparison, compare
from repquant.methods.layer_positions import parameters_of
from repquant.methods.points import find_points
from repquant.methods.rounded import Rounded
from repquant.methods.weight_grids import find_weight_grids
from repquant.numerics.knapsack import cheapest_choices
from repquant.targets.target import Target

FEWER_BITS = (4,)
"""That a layer may have in place of the target's: the one width below 8 that runtimes have integers of."""

SENSITIVITY_IMAGES = 64
"""That layers are compared on: what counts is how they stand to each other, not how much each of them loses."""

Losses = Mapping[str, float]
"""Layer name -> `Divergence.harm` of the network with the weights of this layer alone rounded."""


def widths_of(target: Target) -> tuple[int, ...]:
    """Return the bits that the weights of a layer may have on a target, the fewest first; its own are the most."""
    most = target.weight.bits
    return (*(bits for bits in FEWER_BITS if bits < most), most)


def check_average_bits(average_bits: float, target: Target) -> None:
    """Accept an average that layers of `widths_of` can hold to.

    Raises:
        InputError: it is below the fewest bits or above the most, or the target leaves nothing to choose.
    """
    widths, what = widths_of(target), given("average_bits", average_bits)
    fewest, most = widths[0], widths[-1]
    if fewest == most:
        raise InputError(
            f"{what} and {given('weight_bits', most)} were given, and no layer gets more than {most} bits; raise "
            "`weight_bits` to 8, or leave one of them out"
        )
    is_number = isinstance(cast("object", average_bits), Real | Decimal)
    if not is_number or not fewest <= average_bits <= most:  # NaN is nowhere
        why = f" ({target.note})" if target.note else ""
        raise InputError(
            f"{what} was given; allowed is from {fewest} to {most}, as each layer gets {' or '.join(map(str, widths))} "
            f"bits{why}; for the same bits in all layers give `weight_bits` alone"
        )


def preparing_target(target: Target, average_bits: float | None) -> Target:
    """Return the target that a network is prepared for, before the bits of its layers are known.

    Most of the noise is that of the layers with the fewest bits: each bit less is four times the noise power.
    """
    if average_bits is None or average_bits >= target.weight.bits:
        return target
    return replace(target, weight=replace(target.weight, bits=widths_of(target)[0]))


def mean_bits(graph: fx.GraphModule, plan: Plan) -> float:
    """Return the bits of a weight, averaged over all weights that are rounded."""
    sizes = weight_counts(graph, plan)
    return sum(count * plan.weight_scheme(name).bits for name, count in sizes.items()) / sum(sizes.values())


def weight_counts(graph: fx.GraphModule, plan: Plan) -> dict[str, int]:
    """Return how many weights each layer has that is rounded."""
    return {name: parameters_of(graph.get_submodule(name))[0].numel() for name in plan.layout.layers}


def choose_weight_bits(
    graph: fx.GraphModule,
    plan: Plan,
    average_bits: float,
    weight_ranges: WeightRanges,
    batches: Iterable[Batch],
    on_batch: Callable[[int], None] = lambda _: None,
) -> dict[str, int]:
    """Return the bits of each layer's weights: at most `average_bits` on average, with the least sum of losses.

    Args:
        graph: from `methods.ptq.prepare`.
        plan: for this network.
        average_bits: bits of a weight, averaged over all weights that are rounded.
        weight_ranges: "max" or "mse", where the rounding of the weights begins; here they are rounded to the nearest.
        batches: see `graph.run.inputs_of`; the first `SENSITIVITY_IMAGES` images are looked at, in whole batches.
        on_batch: called with the number of images after each batch.

    Raises:
        InputError: see `check_average_bits`; no batch came, or one does not fit the network.
        FloatingPointError: an output is NaN or infinite where that of the float network is not.
    """
    check_average_bits(average_bits, plan.target)
    widths, counts = widths_of(plan.target), weight_counts(graph, plan)
    losses = measure_losses(graph, plan, widths, weight_ranges, first_images(batches, SENSITIVITY_IMAGES), on_batch)
    budget = int(Fraction(str(average_bits)) * sum(counts.values()))  # as a person wrote it: 4.1 is no binary fraction
    choices = cheapest_choices(
        [[bits * count for bits in widths] for count in counts.values()],
        [[losses[bits][name] for bits in widths] for name in counts],
        budget,
    )
    return {name: widths[choice] for name, choice in zip(counts, choices, strict=True)}


@torch.inference_mode()
def measure_losses(
    graph: fx.GraphModule,
    plan: Plan,
    widths: Sequence[int],
    weight_ranges: WeightRanges,
    batches: Iterable[Batch],
    on_batch: Callable[[int], None] = lambda _: None,
) -> dict[int, Losses]:
    """Return, by the bits, what each layer loses when its weights alone are rounded, to the nearest.

    With p layers a batch costs about p/2 + 1 passes of the float network for each of the widths.

    Args:
        graph: from `capture`.
        plan: for this network.
        widths: bits to try.
        weight_ranges: "max" or "mse".
        batches: see `graph.run.inputs_of`; labels are not needed.
        on_batch: called with the number of images after each batch.

    Raises:
        InputError: no batch came, or one does not fit the network.
        FloatingPointError: an output is NaN or infinite where that of the float network is not.
    """
    forms = {bits: _with_rounded_weights(graph, plan, bits, weight_ranges) for bits in widths}
    names = {node: name for form in forms.values() for node, (name, _) in form.items()}
    compared = {
        bits: {node: Comparison(f"the network with {names[node]} alone in {bits} bits") for node in form}
        for bits, form in forms.items()
    }
    images = 0
    for batch in batches:
        reference = run(graph, batch)
        for bits, form in forms.items():
            alternatives = {node: {node: compute} for node, (_, compute) in form.items()}
            run_alternatives(graph, batch, {}, alternatives, compare(compared[bits], reference))
        count = batch_size(graph, batch)
        images += count
        on_batch(count)
    if images == 0:
        raise InputError("there are no images to compare layers on; give at least 1")
    return {
        bits: {names[node]: comparison.result().harm for node, comparison in own.items()}
        for bits, own in compared.items()
    }


def _with_rounded_weights(
    graph: fx.GraphModule, plan: Plan, bits: int, weight_ranges: WeightRanges
) -> dict[str, tuple[str, Compute]]:
    """Return, by the node of each layer, its name and how it computes in float with weights of so many bits."""
    whole = replace(plan, weight_bits=dict.fromkeys(plan.layout.layers, bits), weight_grids={})
    whole = replace(whole, weight_grids=find_weight_grids(graph, weight_ranges, whole))
    points = find_points(graph, Rounded(graph, whole))
    return {point.node: (point.name, point.weights) for point in points if point.integers is not None}
