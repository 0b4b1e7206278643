"""Channel scales that spread quantization error evenly: the pure core of cross-layer equalization.

A network of convolutions and ReLUs computes the same when the tensor between two layers is multiplied by c > 0, channel
by channel: the producer's rows and bias are multiplied by c, the consumer's columns divided by it. Rounding does not
compute the same, so c can be chosen to lose less (Nagel et al., "Data-Free Quantization through Weight Equalization and
Bias Correction", ICCV 2019).

`equalize_ranges` is their rule for a pair of layers. `minimize_noise` replaces it by what it stands for: a model of the
rounding noise of weights and activations that reaches the output, minimized over the scales of all tensors together. It
needs the mean squares and ranges of the activations, and knows where the diagonal of an identity branch is kept.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

_LIMIT = math.log(64)  # of a factor: a channel that matters to nobody would drift without bound
Shortcut = Literal["inside", "apart", "residual"]
"""Where a layer keeps the diagonal of its identity branch: in the kernel, apart, or as a plain addition of the input
that leaves the difference between the diagonal and 1 in the kernel."""


@dataclass(frozen=True, kw_only=True)
class LayerStatistics:
    """What the noise model knows of one layer of a chain; the next layer's input is this one's output.

    Attributes:
        magnitude: (O, I) largest magnitude of each kernel, without the diagonal where there is one; 0 outside groups.
        energy: (O, I) sum of squares of each kernel, with the diagonal.
        diagonal: (O,) the diagonal center, or None for a layer without an identity branch.
        variance: (I,) of each input channel.
        amax: (I,) largest magnitude of each input channel.
        active: (O,) share of positions where the output passes the ReLU; 1 without one.
        taps: kernel positions that see each input channel (9 for 3x3).
    """

    magnitude: Tensor
    energy: Tensor
    diagonal: Tensor | None
    variance: Tensor
    amax: Tensor
    active: Tensor
    taps: int


def equalize_ranges(producer_amax: Tensor, consumer_amax: Tensor) -> Tensor:
    """Return the factors (C,) that give the rows of the producer and the columns of the consumer the same range.

    A channel that is zero on either side keeps the factor 1.
    """
    usable = (producer_amax > 0) & (consumer_amax > 0)
    return torch.where(usable, (consumer_amax / producer_amax.clamp(min=1e-30)).sqrt(), torch.ones_like(producer_amax))


def minimize_noise(
    layers: Sequence[LayerStatistics],
    shortcut: Shortcut,
    *,
    weight_steps: int,
    activation_steps: int,
    per_channel: bool = True,
    iterations: int = 100,
    learning_rate: float = 0.1,
) -> list[Tensor]:
    """Return factors (C,) for the tensors between the layers of a chain: one fewer than layers.

    Args:
        layers: in forward order.
        shortcut: where the layers with a diagonal keep it.
        weight_steps: largest integer of a weight (127 for 8 bits).
        activation_steps: number of steps from 0 to the largest activation (127 signed, 255 unsigned).
        per_channel: each row of a weight has its own step; otherwise a layer has one.
        iterations, learning_rate: of Adam on the logarithms of the factors.
    """
    gains = _output_gains(layers)
    logs = [torch.zeros(len(layer.active), dtype=torch.float64, requires_grad=True) for layer in layers[:-1]]
    if not logs:
        return []
    optimizer = torch.optim.Adam(logs, lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    best, best_noise = [log.detach().clone() for log in logs], float("inf")

    def total() -> Tensor:
        factors = [None, *(log.exp() for log in logs), None]
        terms = [
            _noise(layer, gain, before, after, shortcut, weight_steps, activation_steps, per_channel)
            for layer, gain, before, after in zip(layers, gains, factors[:-1], factors[1:], strict=True)
        ]
        return torch.stack(terms).sum()

    for _ in range(iterations):
        optimizer.zero_grad()
        noise = total()
        if noise.item() < best_noise:
            best, best_noise = [log.detach().clone() for log in logs], noise.item()
        noise.log().backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            for log in logs:
                log.clamp_(-_LIMIT, _LIMIT)
    return [log.exp() for log in best]


def _output_gains(layers: Sequence[LayerStatistics]) -> list[Tensor]:
    """Noise power at the network's output for noise of power 1 in each output channel of each layer: (O,) each."""
    gains = [torch.ones(len(layers[-1].active), dtype=torch.float64)]
    for layer, producer in zip(reversed(layers[1:]), reversed(layers[:-1]), strict=True):
        gains.append(producer.active.double() * (gains[-1] @ layer.energy.double()))
    return gains[::-1]


def _noise(
    layer: LayerStatistics,
    gain: Tensor,
    before: Tensor | None,
    after: Tensor | None,
    shortcut: Shortcut,
    weight_steps: int,
    activation_steps: int,
    per_channel: bool,
) -> Tensor:
    """Noise power that rounding a layer's weights and input adds to the network's output, in original units."""
    inputs, outputs = len(layer.variance), len(layer.active)
    c = torch.ones(inputs, dtype=torch.float64) if before is None else before
    row_range = (layer.magnitude.double() / c).amax(1)
    if layer.diagonal is not None and shortcut != "apart":
        diagonal = layer.diagonal.double()
        if shortcut == "residual":
            after_c = torch.ones(outputs, dtype=torch.float64) if after is None else after
            diagonal = diagonal - c / after_c
        row_range = torch.maximum(row_range, diagonal.abs() / c)
    if not per_channel:
        out = torch.ones(outputs, dtype=torch.float64) if after is None else after
        row_range = (row_range * out).amax() / out
    # The columns of a row outside its group have no weights to round.
    seen = (layer.energy > 0).double() @ (c.square() * layer.variance.double())
    weights = layer.taps / 12 * (gain * (row_range / weight_steps).square() * seen).sum()
    if before is None:
        return weights
    step = (c * layer.amax.double()).amax() / activation_steps
    activations = step.square() / 12 * ((gain @ layer.energy.double()) / c.square()).sum()
    return weights + activations
