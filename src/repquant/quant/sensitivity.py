"""Where the error of a quantized network comes from, layer by layer.

Three views of each quantization point: its weights alone (how far the largest one stands out, and whether it is the
diagonal, where the identity branch of a block lands), the noise that rounding adds to weights and input, and what that
noise does to the network's output when this point alone is quantized, or every other one.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import isfinite, log10

import torch
from torch import Tensor, nn

from repquant.errors import InputError
from repquant.models.blocks import SqueezeExcite
from repquant.models.fuse import identity_kernel
from repquant.models.network import RepVGG
from repquant.numerics.distance import softmax_kl, sqnr_db
from repquant.numerics.outliers import diagonal_dominance, range_over_sigma
from repquant.quant.diagonal import may_have_identity
from repquant.quant.segments import Form, Point, assemble, run_chain, segments_of, swap_each
from repquant.simulation.integers import IntegerParameters
from repquant.simulation.layers import FakeQuantize, QuantizedConv2d, QuantizedLinear


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """How far a network's outputs are from those of the float network.

    Attributes:
        kl: mean KL(softmax(float) || softmax(network)), in nats.
        agreement: images on which both name the same class, in percent.
    """

    kl: float
    agreement: float


@dataclass(frozen=True, kw_only=True)
class LayerSensitivity:
    """One quantization point. None stands for what it does not have, or what is not finite.

    Attributes:
        name: of the module.
        kind: "conv3x3", "linear", "pool" and so on.
        range_over_sigma, range_over_sigma_max: median and largest of `range_over_sigma` over the output channels.
        diagonal_share, diagonal_ratio: of `diagonal_dominance`, where an identity branch may sit; else None.
        weight_sqnr_db: float weights against the quantized ones.
        input_sqnr_db: float input against its quantized form.
        only: this point quantized and nothing else.
        all_but: everything quantized, and this point in float.
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
        """Whether it is a convolution or a linear layer, which `--keep-float` can name."""
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
class Sensitivity:
    """What quantization does to a network, as a whole and by layers.

    Attributes:
        images: that the outputs were compared on.
        weights: weights and biases quantized, activations in float.
        activations: the reverse.
        both: the quantized network.
        layers: the quantization points, in the order of registration.
        histogram: of the layer whose diagonal stands out most; None where no identity branch may sit.
    """

    images: int
    weights: Divergence
    activations: Divergence
    both: Divergence
    layers: tuple[LayerSensitivity, ...]
    histogram: StepHistogram | None


def identity_mask(module: nn.Module) -> Tensor | None:
    """Return where an identity branch lands in the weight, (O, I/groups, 3, 3); None where none fits the shape."""
    if not may_have_identity(module):
        return None
    assert isinstance(module, nn.Conv2d)
    return identity_kernel(module.out_channels, module.groups).bool()


def step_histogram(layer: str, integers: IntegerParameters, mask: Tensor) -> StepHistogram:
    """Count the integers of a layer, those under the mask apart from the others."""
    scheme = integers.weight_grid.scheme
    counts = [
        torch.bincount(integers.weight[place].int() - scheme.qmin, minlength=scheme.qmax - scheme.qmin + 1).tolist()
        for place in (mask, ~mask)
    ]
    return StepHistogram(layer=layer, first=scheme.qmin, diagonal=tuple(counts[0]), others=tuple(counts[1]))


@torch.inference_mode()
def measure_sensitivity(
    model: RepVGG,
    quantized: RepVGG,
    batches: Iterable[Tensor],
    on_batch: Callable[[int], None] = lambda _: None,
) -> Sensitivity:
    """Compare a quantized network with its float original, as a whole and by quantization points.

    With p points a batch costs about p + 5 forward passes, half of them simulated. Memory holds one batch.

    Args:
        model: deploy model in float.
        quantized: the same model after `quantize_model`; its biases may have been corrected.
        batches: images (N, 3, H, W) each; labels are not needed.
        on_batch: called with the number of images after each batch.

    Raises:
        InputError: no batch came.
        FloatingPointError: a network returned NaN or infinite logits.
    """
    parts = segments_of(model, quantized)
    points = [point for _, own in parts for point in own]

    def whole(form: Form) -> list[nn.Module]:
        return [assemble(segment, own, {point.name: form for point in own}) for segment, own in parts]

    weights, activations, both = whole("weights"), whole("activations"), whole("both")
    only = [{point.name: assemble(segment, own, {point.name: "both"}) for point in own} for segment, own in parts]
    all_but = [
        {
            point.name: assemble(segment, own, {other.name: "both" for other in own if other is not point})
            for point in own
        }
        for segment, own in parts
    ]

    wholes = {name: _Comparison(f"{name} quantized") for name in ("weights", "activations", "both")}
    alone = {point.name: _Comparison(f"{point.name} quantized alone") for point in points}
    spared = {point.name: _Comparison(f"{point.name} in float alone") for point in points}
    noises = {point.name: _Noise(point.quantized.input) for point in points}
    images = 0
    for batch in batches:
        with ExitStack() as hooks:
            for point in points:
                hooks.callback(point.module.register_forward_pre_hook(noises[point.name]).remove)
            reference = model(batch)
        wholes["weights"].add(reference, run_chain(weights, batch))
        wholes["activations"].add(reference, run_chain(activations, batch))
        for name, logits in swap_each([segment for segment, _ in parts], only, batch)[1].items():
            alone[name].add(reference, logits)
        output, outputs = swap_each(both, all_but, batch)
        wholes["both"].add(reference, output)
        for name, logits in outputs.items():
            spared[name].add(reference, logits)
        images += len(batch)
        on_batch(len(batch))
    if images == 0:
        raise InputError("there are no images to analyze; give at least 1")
    return Sensitivity(
        images=images,
        weights=wholes["weights"].result(),
        activations=wholes["activations"].result(),
        both=wholes["both"].result(),
        layers=tuple(
            _layer(point, noises[point.name].sqnr_db(), alone[point.name].result(), spared[point.name].result())
            for point in points
        ),
        histogram=_most_diagonal(points),
    )


class _Comparison:
    """Sums over batches of what `Divergence` is the mean of."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._kl = 0.0
        self._same = 0
        self._images = 0

    def add(self, reference: Tensor, logits: Tensor) -> None:
        if not torch.isfinite(logits).all():
            raise FloatingPointError(f"the network with {self._what} returned NaN or infinite logits")
        self._kl += float(softmax_kl(reference, logits).sum())
        self._same += int((reference.argmax(1) == logits.argmax(1)).sum())
        self._images += len(logits)

    def result(self) -> Divergence:
        return Divergence(kl=self._kl / self._images, agreement=100 * self._same / self._images)


class _Noise:
    """Forward pre-hook that sums the squares of an input and of what its quantization changes."""

    def __init__(self, quantize: FakeQuantize) -> None:
        self._quantize = quantize
        self._signal = 0.0
        self._noise = 0.0

    def __call__(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0]
        self._signal += float(x.square().sum(dtype=torch.float64))
        self._noise += float((x - self._quantize(x)).square().sum(dtype=torch.float64))

    def sqnr_db(self) -> float | None:
        """Return 10 log10(signal / noise); None where one of them is zero."""
        return 10 * log10(self._signal / self._noise) if self._signal > 0 and self._noise > 0 else None


def _layer(point: Point, input_sqnr_db: float | None, only: Divergence, all_but: Divergence) -> LayerSensitivity:
    ratios, share, ratio, weight_sqnr = torch.empty(0), None, None, None
    if isinstance(point.quantized, QuantizedConv2d | QuantizedLinear):
        weight = point.module.get_parameter("weight")
        ratios = range_over_sigma(weight)
        weight_sqnr = sqnr_db(weight, point.quantized.integers.float_weight())
        if (mask := identity_mask(point.module)) is not None:
            share, ratio = diagonal_dominance(weight, mask)
    return LayerSensitivity(
        name=point.name,
        kind=_kind(point.module),
        range_over_sigma=float(ratios.quantile(0.5)) if len(ratios) else None,
        range_over_sigma_max=float(ratios.max()) if len(ratios) else None,
        diagonal_share=share,
        diagonal_ratio=ratio,
        weight_sqnr_db=weight_sqnr if weight_sqnr is not None and isfinite(weight_sqnr) else None,
        input_sqnr_db=input_sqnr_db,
        only=only,
        all_but=all_but,
    )


def _kind(module: nn.Module) -> str:
    match module:
        case nn.Conv2d():
            return "conv" + "x".join(map(str, module.kernel_size))
        case nn.Linear():
            return "linear"
        case SqueezeExcite():
            return "squeeze-excite"
        case nn.AdaptiveAvgPool2d():
            return "pool"
    return type(module).__name__.lower()


def _most_diagonal(points: Sequence[Point]) -> StepHistogram | None:
    """Return the histogram of the layer whose diagonal rules most channels, and those by most."""
    best: tuple[tuple[float, float], StepHistogram] | None = None
    for point in points:
        mask = identity_mask(point.module)
        if mask is None or not isinstance(point.quantized, QuantizedConv2d):
            continue
        share, ratio = diagonal_dominance(point.module.get_parameter("weight"), mask)
        rank = (share, ratio or 0.0)
        if best is None or rank > best[0]:
            best = rank, step_histogram(point.name, point.quantized.integers, mask)
    return None if best is None else best[1]
