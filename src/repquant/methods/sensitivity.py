"""Where the error of a quantized network comes from, place by place.

Three views of each layer and operator that computes with integers: its weights alone (how far the largest one stands
out, and whether it is the diagonal, where the identity branch of a block lands), the noise that rounding adds to
weights and inputs, and what that noise does to the network's outputs when this place alone is quantized, or every other
one.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, log10

import torch
from torch import Tensor, fx, nn

from repquant.errors import InputError
from repquant.graph.alternatives import Compute, run_alternatives
from repquant.graph.grouping import TransposedConvolution
from repquant.graph.run import Batch, Observer, batch_size, run
from repquant.methods.divergence import Comparison, Divergence, compare
from repquant.methods.identity import identity_mask
from repquant.methods.layer_positions import parameters_of
from repquant.methods.points import Point, find_points
from repquant.methods.rounded import Rounded
from repquant.numerics.affine import Scheme
from repquant.numerics.distance import sqnr_db
from repquant.numerics.outliers import diagonal_dominance, range_over_sigma
from repquant.simulation.integers import IntegerParameters
from repquant.simulation.layers import FakeQuantize

_WORST = 6  # layers with histograms


@dataclass(frozen=True, kw_only=True)
class LayerSensitivity:
    """One layer or operator. None stands for what it does not have, or what is not finite.

    Attributes:
        name: of the layer, or of the operator's node.
        kind: "conv3x3", "linear", "add" and so on.
        range_over_sigma, range_over_sigma_max: median and largest of `range_over_sigma` over the output channels.
        diagonal_share, diagonal_ratio: of `diagonal_dominance`, where an identity branch may sit; else None.
        weight_sqnr_db: float weights against the quantized ones.
        input_sqnr_db: what it reads in float against its quantized form.
        only: this place quantized and nothing else.
        all_but: everything quantized, and this place in float.
    """

    name: str
    kind: str
    range_over_sigma: float | None
    range_over_sigma_max: float | None
    diagonal_share: float | None
    diagonal_ratio: float | None
    weight_sqnr_db: float | None
    input_sqnr_db: float | None
    only: Divergence
    all_but: Divergence

    @property
    def has_weights(self) -> bool:
        """Whether it is a layer."""
        return self.kind.startswith(("conv", "linear"))

    @property
    def may_hold_identity(self) -> bool:
        """Whether an identity branch may sit on the diagonal."""
        return self.diagonal_share is not None


@dataclass(frozen=True, kw_only=True)
class StepHistogram:
    """How often each integer occurs among a layer's weights.

    Attributes:
        layer: its name.
        first: the integer of the first count.
        diagonal: counts of the weights where an identity branch lands.
        others: counts of all other weights, as many.
    """

    layer: str
    first: int
    diagonal: tuple[int, ...]
    others: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class GridHistogram:
    """How the weights of a layer and the values that it reads fall on their grids.

    Attributes:
        layer: its name.
        weight_first: the integer of the first count of weights.
        weights: counts of its integers, over all output channels.
        input_first: the integer of the first count of inputs.
        inputs: counts of the integers that what it reads is rounded to, clipped values at the ends.
        clipped_below, clipped_above: how many of those at the ends were clipped.
    """

    layer: str
    weight_first: int
    weights: tuple[int, ...]
    input_first: int
    inputs: tuple[int, ...]
    clipped_below: int
    clipped_above: int


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """What quantization does to a network, as a whole and by places.

    Attributes:
        images: that the outputs were compared on.
        weights: weights and biases quantized, activations in float.
        activations: the reverse.
        both: the quantized network.
        layers: the layers and operators that compute with integers, in the order of computing.
        histogram: of the layer whose diagonal stands out most; None where no identity branch may sit.
        worst: of the layers with weights that cost most, the worst first.
    """

    images: int
    weights: Divergence
    activations: Divergence
    both: Divergence
    layers: tuple[LayerSensitivity, ...]
    histogram: StepHistogram | None
    worst: tuple[GridHistogram, ...] = ()


def step_histogram(layer: str, integers: IntegerParameters, mask: Tensor) -> StepHistogram:
    """Count the integers of a layer, those under the mask apart from the others."""
    scheme = integers.weight_grid.scheme
    diagonal, others = (_integer_counts(integers.weight[place], scheme) for place in (mask, ~mask))
    return StepHistogram(layer=layer, first=scheme.qmin, diagonal=diagonal, others=others)


@torch.inference_mode()
def measure_sensitivity(
    graph: fx.GraphModule,
    rounded: Rounded,
    batches: Iterable[Batch],
    on_batch: Callable[[int], None] = lambda _: None,
) -> Sensitivity:
    """Compare a quantized network with its float original, as a whole and by the places that compute with integers.

    With p places a batch costs about p + 6 forward passes, half of them simulated. Memory holds one batch.

    Args:
        graph: from `capture`.
        rounded: the same network, rounded; its biases may have been corrected.
        batches: see `graph.run.inputs_of`; labels are not needed.
        on_batch: called with the number of images after each batch.

    Raises:
        InputError: no batch came, or one does not fit the network.
        FloatingPointError: an output is NaN or infinite where that of the float network is not.
    """
    simulated, points = rounded.simulated(), find_points(graph, rounded)
    noises = {name: _Noise(FakeQuantize(rounded.plan.grid_of(name))) for point in points for name in point.operands}
    wholes = {what: Comparison(f"the network with {what} quantized") for what in ("weights", "activations", "both")}
    alone = {point.node: Comparison(f"the network with {point.name} quantized alone") for point in points}
    spared = {point.node: Comparison(f"the network with {point.name} in float alone") for point in points}
    in_float, in_integers, weights, activations = (
        {point.node: getattr(point, form) for point in points}
        for form in ("in_float", "in_integers", "weights", "activations")
    )
    observers: dict[str, Observer] = {name: noise.see for name, noise in noises.items()}
    images = 0
    for batch in batches:
        reference = run(graph, batch, observers)
        wholes["both"].add(reference, run(simulated, batch))
        wholes["weights"].add(reference, run_alternatives(graph, batch, weights))
        wholes["activations"].add(reference, run_alternatives(graph, batch, activations))
        run_alternatives(graph, batch, {}, _one_by_one(in_integers), compare(alone, reference))
        run_alternatives(graph, batch, in_integers, _one_by_one(in_float), compare(spared, reference))
        count = batch_size(graph, batch)
        images += count
        on_batch(count)
    if images == 0:
        raise InputError("there are no images to analyze; give at least 1")
    layers = tuple(
        _layer(
            graph,
            point,
            _input_sqnr_db([noises[name] for name in point.operands]),
            alone[point.node].result(),
            spared[point.node].result(),
        )
        for point in points
    )
    return Sensitivity(
        images=images,
        weights=wholes["weights"].result(),
        activations=wholes["activations"].result(),
        both=wholes["both"].result(),
        layers=layers,
        histogram=_most_diagonal(graph, points),
        worst=_worst(points, layers, noises),
    )


def _one_by_one(computes: Mapping[str, Compute]) -> dict[str, dict[str, Compute]]:
    """Return an alternative for each node."""
    return {node: {node: compute} for node, compute in computes.items()}


class _Noise:
    """Sums of the squares of a tensor, and of what its quantization changes, and counts of the integers it falls on.

    The first and the last count are of what lies beyond the grid.
    """

    def __init__(self, quantize: FakeQuantize) -> None:
        self._quantize = quantize
        self.signal = 0.0
        self.noise = 0.0
        self.counts = torch.zeros(quantize.scheme.qmax - quantize.scheme.qmin + 3, dtype=torch.int64)

    @property
    def first(self) -> int:
        """The grid's smallest integer."""
        return self._quantize.scheme.qmin

    def see(self, x: Tensor) -> None:
        self.signal += float(x.square().sum(dtype=torch.float64))
        self.noise += float((x - self._quantize(x)).square().sum(dtype=torch.float64))
        self.counts += self._quantize.counts(x)


def _input_sqnr_db(noises: Sequence[_Noise]) -> float | None:
    """Return 10 log10(signal / noise); None where one of them is zero."""
    signal, noise = sum(each.signal for each in noises), sum(each.noise for each in noises)
    return 10 * log10(signal / noise) if signal > 0 and noise > 0 else None


def _layer(
    graph: fx.GraphModule, point: Point, input_sqnr_db: float | None, only: Divergence, all_but: Divergence
) -> LayerSensitivity:
    ratios, share, ratio, weight_sqnr = torch.empty(0), None, None, None
    if point.integers is not None:
        layer = graph.get_submodule(point.name)
        weight, _ = parameters_of(layer)
        ratios = range_over_sigma(_outputs_first(layer, weight))
        weight_sqnr = sqnr_db(weight, point.integers.float_weight())
        if (mask := identity_mask(layer)) is not None:
            share, ratio = diagonal_dominance(weight, mask)
    return LayerSensitivity(
        name=point.name,
        kind=point.kind,
        range_over_sigma=float(ratios.quantile(0.5)) if len(ratios) else None,
        range_over_sigma_max=float(ratios.max()) if len(ratios) else None,
        diagonal_share=share,
        diagonal_ratio=ratio,
        weight_sqnr_db=weight_sqnr if weight_sqnr is not None and isfinite(weight_sqnr) else None,
        input_sqnr_db=input_sqnr_db,
        only=only,
        all_but=all_but,
    )


def _worst(
    points: Sequence[Point], layers: Sequence[LayerSensitivity], noises: Mapping[str, _Noise]
) -> tuple[GridHistogram, ...]:
    """Return the histograms of the layers whose absence from the quantized network helps most."""
    ranked = sorted(zip(layers, points, strict=True), key=lambda pair: pair[0].all_but.harm)
    found: list[GridHistogram] = []
    for layer, point in ranked:
        if point.integers is None or len(found) == _WORST:
            continue
        scheme, read = point.integers.weight_grid.scheme, noises[point.operands[0]]
        below, *inside, above = read.counts.tolist()
        inside[0] += below
        inside[-1] += above
        found.append(
            GridHistogram(
                layer=layer.name,
                weight_first=scheme.qmin,
                weights=_integer_counts(point.integers.weight.flatten(), scheme),
                input_first=read.first,
                inputs=tuple(inside),
                clipped_below=below,
                clipped_above=above,
            )
        )
    return tuple(found)


def _integer_counts(integers: Tensor, scheme: Scheme) -> tuple[int, ...]:
    size = scheme.qmax - scheme.qmin + 1
    return tuple(torch.bincount(integers.int() - scheme.qmin, minlength=size).tolist())


def _outputs_first(layer: nn.Module, weight: Tensor) -> Tensor:
    """Return a weight with what has one scale along the first dimension."""
    return weight.transpose(0, 1) if isinstance(layer, TransposedConvolution) else weight


def _most_diagonal(graph: fx.GraphModule, points: Sequence[Point]) -> StepHistogram | None:
    """Return the histogram of the layer whose diagonal rules most channels, and those by most."""
    best: tuple[tuple[float, float], StepHistogram] | None = None
    for point in points:
        mask = None if point.integers is None else identity_mask(graph.get_submodule(point.name))
        if mask is None or point.integers is None:
            continue
        weight, _ = parameters_of(graph.get_submodule(point.name))
        share, ratio = diagonal_dominance(weight, mask)
        rank = (share, ratio or 0.0)
        if best is None or rank > best[0]:
            best = rank, step_histogram(point.name, point.integers, mask)
    return None if best is None else best[1]
