"""Learned rounding: each weight of a layer goes up or down, whichever is better for the layer's output.

AdaRound (Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", ICML 2020) replaces a weight by
s * clip(floor(W/s) + h(alpha), qmin, qmax) with h in [0, 1], and drives h to 0 or 1 by a penalty while the error of the
output is minimized. The error is taken on rows of inputs, each what the kernel sees at one output position, so that a
step is two matrix products whatever the size of the maps. The gradients are written out: on small batches of rows,
automatic differentiation would cost as much as the products.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from repquant.numerics.affine import INT32_MAX, Scheme
from repquant.numerics.rounding_options import RoundingOptions

PENALTY = 1000.0
"""Weight of the penalty, beside an error that is 1 for each weight when all are rounded to nearest (`learn_rounding`).

The public code has 0.01 beside an error in units of the output. That error falls with the square of the step: at 8 bits
the penalty would leave nothing to learn after the warm-up. In these units the weight matters little, since the exponent
decides when a weight is let go: on layers of RepVGG-A0 the error left at 100 and at 10,000 differs by at most 12 %.
"""

_LOW, _HIGH = -0.1, 1.1  # the sigmoid is stretched to this interval and clipped to [0, 1]
_STRETCH = _HIGH - _LOW
_EDGE_SLOPE = -_LOW * _HIGH / _STRETCH**2  # sigmoid * (1 - sigmoid) where h reaches 0 or 1; it is smaller outside
_WARM_UP = 0.2  # fraction of the steps without penalty
_FIRST_EXPONENT, _LAST_EXPONENT = 20, 2
_DECAY_1, _DECAY_2, _EPSILON = 0.9, 0.999, 1e-8
_GAINS = (0.5, 2.0)
_LARGEST_BIAS = 0.999 * INT32_MAX  # in steps of the accumulator; float32 rounds near 2^31
_PROBE = 1024  # rows on which the error of rounding to nearest is measured


@dataclass(frozen=True, kw_only=True)
class LayerRows:
    """What a layer of G groups, with K weights in an output channel, sees and should give at R output positions.

    Attributes:
        steps: (R, G, K) int16, the integers of the quantized input, less the zero point.
        targets: (R, O) float32, what the float network has where the error is taken, before the ReLU.
        input_scale: real value of one input step.
        addend: (R, O) float32, what the quantized network adds to the layer's output there; None for nothing.
        relu: a ReLU follows; the error is taken behind it.
        float_steps: (R, G, K) float16, the float layer's input in units of the step; needed if `drop` is above 0.
    """

    steps: Tensor
    targets: Tensor
    input_scale: float
    addend: Tensor | None = None
    relu: bool = False
    float_steps: Tensor | None = None


@dataclass(frozen=True)
class LearnedRounding:
    """What was learned.

    Attributes:
        integers: (O, K) int8 weights.
        gain: (O,) float32 factor of the channel's scale; 1 without `affine`.
        bias: (O,) float32, or None for a layer that has none.
    """

    integers: Tensor
    gain: Tensor
    bias: Tensor | None


def inverse_rectified_sigmoid(h: Tensor) -> Tensor:
    """Return the alpha at which h = clip(1.2 * sigmoid(alpha) - 0.1, 0, 1) has these values in [0, 1].

    Just inside of 0 and 1, where h can still move.
    """
    return torch.logit((h.clamp(1e-3, 1 - 1e-3) - _LOW) / _STRETCH)


def penalty_exponent(step: int, steps: int) -> int | None:
    """Return the exponent beta of the penalty sum(1 - |2h - 1|^beta): 20, 18, ..., 2 after a warm-up without any.

    A high exponent leaves all but the decided weights free. Even exponents make the penalty a polynomial, which costs a
    fifth of a power function.
    """
    progress = (step / steps - _WARM_UP) / (1 - _WARM_UP)
    if progress < 0:
        return None
    stages = (_FIRST_EXPONENT - _LAST_EXPONENT) // 2 + 1
    return _FIRST_EXPONENT - 2 * int(progress * stages)


class SoftRounding:
    """Weights in units of their step, between the two integers next to them.

    Args:
        counts: W/s in units of the step, of any shape.
        scheme: the integer grid; its ends clip.

    Attributes:
        alpha: the parameter, same shape. It starts where the soft weights are the float ones.
    """

    def __init__(self, counts: Tensor, scheme: Scheme) -> None:
        floor = counts.floor()
        self._low = floor.clamp(scheme.qmin, scheme.qmax)
        self._room = (floor + 1).clamp(scheme.qmin, scheme.qmax) - self._low  # 1, and 0 for weights that are clipped
        self.alpha = inverse_rectified_sigmoid(counts - floor)
        self._sigmoid, self._h, self._soft, self._scratch = (torch.empty_like(self.alpha) for _ in range(4))

    def soft(self) -> Tensor:
        """Return clip(floor(W/s) + h(alpha), qmin, qmax) in a buffer that the next call overwrites."""
        torch.sigmoid(self.alpha, out=self._sigmoid)
        torch.mul(self._sigmoid, _STRETCH, out=self._h).add_(_LOW).clamp_(0, 1)
        return torch.addcmul(self._low, self._room, self._h, out=self._soft)

    def gradient(self, soft_gradient: Tensor, exponent: int | None, penalty: float) -> Tensor:
        """Return the gradient of the whole loss with respect to alpha, at the alpha of the last `soft()`.

        Args:
            soft_gradient: of the error with respect to the soft weights; it is overwritten by the result.
            exponent: even, see `penalty_exponent`; None is no penalty.
            penalty: weight of the penalty.
        """
        gradient = soft_gradient.mul_(self._room)
        if exponent is not None:
            centered = torch.mul(self._h, 2, out=self._scratch).sub_(1)
            gradient.sub_(_odd_power(centered, exponent - 1), alpha=2 * exponent * penalty)
        slope = torch.addcmul(self._sigmoid, self._sigmoid, self._sigmoid, value=-1, out=self._scratch)
        F.threshold(slope, _EDGE_SLOPE, 0.0, inplace=True)
        return gradient.mul_(slope).mul_(_STRETCH)

    def hard(self) -> Tensor:
        """Return the integers: each weight on the side to which h leans, int8."""
        return torch.where(self.alpha >= 0, self._low + self._room, self._low).to(torch.int8)


@torch.no_grad()
def learn_rounding(
    rows: LayerRows,
    counts: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    scheme: Scheme,
    options: RoundingOptions,
    generator: torch.Generator,
    on_step: Callable[[int], None] = lambda _: None,
) -> LearnedRounding:
    """Return the integers, and the bias and gains, with which a layer comes closest to its float output.

    The loss is  n * E / E_nearest + PENALTY * sum(1 - |2h - 1|^beta)  with E the error of the output (sum over the
    channels, mean over the rows), E_nearest that of rounding to nearest and n the number of weights: the balance of the
    two depends neither on the units of the activations nor on the bits of the weights.

    Args:
        rows: inputs and targets.
        counts: (O, K) float weights in units of their step; output channels of a group are neighbours.
        weight_scale: () or (O,) steps of the weights.
        bias: (O,) float bias, or None.
        scheme: integer grid of the weights.
        options: how to learn.
        generator: draws the batches.
        on_step: called with 1 after each step.
    """
    groups = rows.steps.shape[1]
    channels = len(counts) // groups
    rounding = SoftRounding(counts.float().reshape(groups, channels, -1), scheme)
    scale = (weight_scale * rows.input_scale).expand(len(counts)).reshape(groups, 1, channels)
    output = LayerOutput(rows, scale, bias, counts, scheme, options)
    adam = Adam([rounding.alpha, *output.parameters], options.learning_rate)
    for step in range(options.steps):
        x, targets, addend = _draw(rows, channels, options, generator)
        soft_gradient, *gradients = output.gradients(x, rounding.soft(), targets, addend)
        exponent = penalty_exponent(step, options.steps)
        adam.step([rounding.gradient(soft_gradient, exponent, PENALTY), *gradients])
        on_step(1)
    return LearnedRounding(rounding.hard().reshape(counts.shape), output.gain.flatten().clone(), output.final_bias())


class Adam:
    """Adam (Kingma & Ba, ICLR 2015) on given gradients.

    torch's own loads the compiler, which takes seconds, and its fused form starts threads for a handful of biases.
    """

    def __init__(self, parameters: list[Tensor], learning_rate: float) -> None:
        self._rate, self._steps = learning_rate, 0
        self._states = [(x, torch.zeros_like(x), torch.zeros_like(x), torch.empty_like(x)) for x in parameters]

    def step(self, gradients: list[Tensor]) -> None:
        """Change the parameters in place."""
        self._steps += 1
        rate = self._rate / (1 - _DECAY_1**self._steps)
        correction = math.sqrt(1 - _DECAY_2**self._steps)
        for (parameter, mean, square, root), gradient in zip(self._states, gradients, strict=True):
            mean.lerp_(gradient, 1 - _DECAY_1)
            square.mul_(_DECAY_2).addcmul_(gradient, gradient, value=1 - _DECAY_2)
            torch.sqrt(square, out=root).add_(_EPSILON * correction)
            parameter.addcdiv_(mean, root, value=-rate * correction)


class LayerOutput:
    """The layer's output as a function of its integers: its bias and gain, and the gradients through it.

    All tensors have the groups first: inputs (G, B, K), weights (G, O/G, K), outputs (G, B, O/G).

    Args:
        rows: some of them give the error of rounding to nearest, which is the unit of biases, gains and the loss.
        scale: (G, 1, O/G) real value of the accumulator's step.
        bias: (O,) or None.
        counts: (O, K) float weights in units of their step.
        scheme: integer grid of the weights.
        options: the loss, and whether there is a gain.
    """

    def __init__(
        self,
        rows: LayerRows,
        scale: Tensor,
        bias: Tensor | None,
        counts: Tensor,
        scheme: Scheme,
        options: RoundingOptions,
    ) -> None:
        self._scale, self._relu, self._absolute = scale, rows.relu, options.loss == "mae"
        self._start = torch.zeros_like(scale) if bias is None else bias.detach().float().reshape(scale.shape).clone()
        self._shift, self._stretch = torch.zeros_like(scale), torch.zeros_like(scale)
        self._learn_shift, self._learn_stretch = bias is not None, options.affine
        probe = torch.linspace(0, len(rows.steps) - 1, min(_PROBE, len(rows.steps))).long().to(rows.steps.device)
        nearest = counts.round().clamp(scheme.qmin, scheme.qmax).reshape(scale.shape[0], scale.shape[2], -1)
        products = torch.bmm(_groups_first(rows.steps[probe].float()), nearest.transpose(1, 2)) * scale
        addend = 0.0 if rows.addend is None else _outputs(rows.addend, probe, scale.shape[2])
        error = self._residual(products + self._start + addend, _outputs(rows.targets, probe, scale.shape[2]))
        self._noise = error.square().mean(1, keepdim=True).sqrt()  # of each channel, in units of the output
        total = error.abs().mean(1).sum() if self._absolute else error.square().mean(1).sum()
        self._weight = counts.numel() / float(total) if total > 0 else 1.0
        size = products.square().mean(1, keepdim=True).sqrt()
        self._gain_unit = (self._noise / size).nan_to_num(0, 0, 0).clamp(max=1)

    @property
    def parameters(self) -> list[Tensor]:
        """What is learned here."""
        return [self._shift] * self._learn_shift + [self._stretch] * self._learn_stretch

    @property
    def gain(self) -> Tensor:
        """Factor (G, 1, O/G) of the scale."""
        return (1 + self._gain_unit * self._stretch).clamp(*_GAINS)

    @property
    def bias(self) -> Tensor:
        """Bias (G, 1, O/G), 0 for a layer that has none."""
        return self._start + self._noise * self._shift

    def final_bias(self) -> Tensor | None:
        """Return the bias (O,), within what 32 bits hold in units of the accumulator's step."""
        if not self._learn_shift:
            return None
        largest = self._scale * self.gain * _LARGEST_BIAS
        return self.bias.clamp(-largest, largest).flatten()

    def gradients(self, x: Tensor, weight: Tensor, targets: Tensor, addend: Tensor | float = 0.0) -> list[Tensor]:
        """Return the gradients of the error with respect to the weight and to the parameters, in their order.

        Args:
            x: inputs in steps.
            weight: soft integers.
            targets: float outputs.
            addend: what comes on top of the layer's output.
        """
        scale = self._scale * self.gain
        products = torch.bmm(x, weight.transpose(1, 2))
        y = torch.addcmul(self.bias, products, scale).add_(addend)
        error = self._residual(y, targets)
        gradient = error.sign_() if self._absolute else error.mul_(2)
        if self._relu:
            gradient.mul_(y > 0)
        gradient.mul_(self._weight / y.shape[1])
        found = []
        if self._learn_shift:
            found.append(gradient.sum(1, keepdim=True).mul_(self._noise))
        if self._learn_stretch:
            found.append((gradient * products).sum(1, keepdim=True).mul_(self._scale * self._gain_unit))
        return [torch.bmm(gradient.mul_(scale).transpose(1, 2), x), *found]

    def _residual(self, y: Tensor, targets: Tensor) -> Tensor:
        return y.relu() - targets.relu() if self._relu else y - targets


def _draw(
    rows: LayerRows, channels: int, options: RoundingOptions, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor | float]:
    """Return a batch: inputs (G, B, K) in steps, targets (G, B, O/G) and addends of the same shape, or 0."""
    chosen = torch.randint(len(rows.steps), (options.batch,), generator=generator).to(rows.steps.device)
    x = rows.steps.index_select(0, chosen).float()
    if options.drop:
        assert rows.float_steps is not None
        dropped = _random_mask(x.shape, options.drop, generator).to(x.device)
        x = torch.where(dropped, rows.float_steps.index_select(0, chosen).float(), x)
    addend = 0.0 if rows.addend is None else _outputs(rows.addend, chosen, channels)
    return _groups_first(x), _outputs(rows.targets, chosen, channels), addend


def _outputs(values: Tensor, chosen: Tensor, channels: int) -> Tensor:
    """Return rows of (R, O) as (G, B, O/G)."""
    return _groups_first(values.index_select(0, chosen).unflatten(1, (-1, channels)))


def _random_mask(shape: torch.Size, probability: float, generator: torch.Generator) -> Tensor:
    """Return booleans that are true with this probability, in steps of 2^-16; a tenth of the time of `bernoulli_`."""
    words = torch.empty((shape.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None, generator=generator)
    largest = max(round(probability * 2**16), 1) - 2**15 - 1
    return (words.view(torch.int16)[: shape.numel()] <= largest).view(shape)


def _groups_first(x: Tensor) -> Tensor:
    return x.transpose(0, 1)


def _odd_power(x: Tensor, exponent: int) -> Tensor:
    """Return x^exponent by squaring."""
    power = x.clone()
    square = x * x
    rest = exponent // 2
    while rest:
        if rest & 1:
            power.mul_(square)
        rest >>= 1
        if rest:
            square.mul_(square)
    return power
