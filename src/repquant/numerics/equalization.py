"""Channel scales that spread quantization error evenly: the pure core of cross-layer equalization.

A network computes the same when the channels of a tensor are multiplied by c > 0, as long as those who read it commute
with that: the producers' rows and biases are multiplied by c, the consumers' columns divided by it. Rounding does not
compute the same, so c can be chosen to lose less (Nagel et al., "Data-Free Quantization through Weight Equalization and
Bias Correction", ICCV 2019).

All scales of a network are one vector. A channel has an index into it; several channels may have the same one, and
those that can't be scaled have -1.

`balance_ranges` is Nagel's rule. `minimize_noise` replaces it by what it stands for: a model of the rounding noise of
weights and activations that reaches the output, minimized over all scales together. It needs the variances and ranges
of the activations and the gain from each place to the output, and knows where the diagonal of an identity branch is
kept.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from repquant.choices import Shortcut

_LIMIT = math.log(64)  # of a factor: a channel that matters to nobody would drift without bound
_RANGE_SWEEPS = 20  # of the pairwise rule over a network; it has converged by then


@dataclass(frozen=True, kw_only=True)
class LayerScales:
    """The scales around a layer of G groups.

    Attributes:
        inputs: (I,) index of each input channel.
        outputs: (O,) index of each output channel.
        magnitude: (G, O/G, I/G) largest magnitude of each kernel.
    """

    inputs: Tensor
    outputs: Tensor
    magnitude: Tensor


@dataclass(frozen=True, kw_only=True)
class LayerStatistics(LayerScales):
    """What the noise model knows of a layer whose weights are rounded; `magnitude` is without the diagonal.

    Attributes:
        diagonal: (O,) the diagonal center, or None for a layer without an identity branch.
        seen: (G, O/G, I/G) 1 where a kernel has weights to round, 0 where it is zero.
        variance: (I,) of each input channel.
        gain: (O,) noise power at the network's output for noise of power 1 in an output channel.
        taps: kernel positions that see each input channel (9 for 3x3).
        one_step: dimensions of (G, O/G) along which rows have one step: () per channel, (0, 1) per tensor.
    """

    diagonal: Tensor | None
    seen: Tensor
    variance: Tensor
    gain: Tensor
    taps: float
    one_step: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TensorStatistics:
    """What the noise model knows of a tensor that is rounded on one grid.

    Attributes:
        channels: (C,) index of each channel.
        high, low: (C,) the grid reaches from the largest of `-low` to the largest of `high`, after scaling; a symmetric
            grid has low 0 and the largest magnitudes in high.
        gain: (C,) noise power at the network's output for noise of power 1 in a channel.
    """

    channels: Tensor
    high: Tensor
    low: Tensor
    gain: Tensor


def scales_at(scales: Tensor, index: Tensor) -> Tensor:
    """Return the scale of every index, same shape; 1 at -1."""
    return torch.cat([scales, scales.new_ones(1)])[index]


def equalize_ranges(producer_amax: Tensor, consumer_amax: Tensor) -> Tensor:
    """Return the factors (C,) that give the rows of the producer and the columns of the consumer the same range.

    A channel that is zero on either side keeps the factor 1.
    """
    usable = (producer_amax > 0) & (consumer_amax > 0)
    return torch.where(usable, (consumer_amax / producer_amax.clamp(min=1e-30)).sqrt(), torch.ones_like(producer_amax))


def balance_ranges(layers: Sequence[LayerScales], count: int) -> Tensor:
    """Return the scales (count,) with which producers and consumers of each have the same range.

    Of several producers, or consumers, the largest counts. The scales behind one layer are found together, from the
    first layer to the last, and again until nothing moves.

    Args:
        layers: in forward order.
        count: of scales.
    """
    scales = torch.ones(count, dtype=torch.float64)
    taken = torch.zeros(count + 1, dtype=torch.bool)
    taken[-1] = True
    blocks = []
    for layer in layers:
        block = layer.outputs.unique()
        blocks.append(block[~taken[block]])
        taken[block] = True
    neighbours = [
        (
            [layer for layer in layers if torch.isin(layer.outputs, block).any()],
            [layer for layer in layers if torch.isin(layer.inputs, block).any()],
        )
        for block in blocks
    ]
    for _ in range(_RANGE_SWEEPS):
        for block, (producers, consumers) in zip(blocks, neighbours, strict=True):
            rows, columns = torch.zeros(2, count + 1, dtype=torch.float64)
            for layer in producers:
                rows.scatter_reduce_(0, layer.outputs % (count + 1), _scaled(layer, scales).amax(2).flatten(), "amax")
            for layer in consumers:
                columns.scatter_reduce_(0, layer.inputs % (count + 1), _scaled(layer, scales).amax(1).flatten(), "amax")
            scales[block] *= equalize_ranges(rows[block], columns[block])
    return scales


def _scaled(layer: LayerScales, scales: Tensor) -> Tensor:
    groups = len(layer.magnitude)
    before, after = scales_at(scales, layer.inputs), scales_at(scales, layer.outputs)
    return layer.magnitude * after.view(groups, -1, 1) / before.view(groups, 1, -1)


@torch.enable_grad()
def minimize_noise(
    layers: Sequence[LayerStatistics],
    tensors: Sequence[TensorStatistics],
    count: int,
    shortcut: Shortcut = "inside",
    *,
    weight_steps: float,
    activation_steps: float,
    iterations: int = 100,
    learning_rate: float = 0.1,
) -> Tensor:
    """Return the scales (count,) with which rounding adds the least noise to the output.

    Args:
        layers: those whose weights are rounded.
        tensors: those that are rounded.
        count: of scales.
        shortcut: where the layers with a diagonal keep it.
        weight_steps: largest integer of a weight (127 for 8 bits).
        activation_steps: number of steps of an activation's range (127 from 0 if symmetric, 255 unsigned).
        iterations, learning_rate: of Adam on the logarithms of the scales.
    """
    logs = torch.zeros(count, dtype=torch.float64, requires_grad=True)
    if not count or not (layers or tensors):
        return logs.detach().exp()
    optimizer = torch.optim.Adam([logs], lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    best, best_noise = logs.detach().clone(), float("inf")
    for _ in range(iterations):
        optimizer.zero_grad()
        scales = logs.exp()
        terms = [_weight_noise(layer, scales, shortcut, weight_steps) for layer in layers]
        terms += [_activation_noise(tensor, scales, activation_steps) for tensor in tensors]
        noise = torch.stack(terms).sum()
        if noise.item() < best_noise:
            best, best_noise = logs.detach().clone(), noise.item()
        if noise.item() <= 0:
            break
        noise.log().backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            logs.clamp_(-_LIMIT, _LIMIT)
    return best.exp()


def _weight_noise(layer: LayerStatistics, scales: Tensor, shortcut: Shortcut, steps: float) -> Tensor:
    """Noise power that rounding a layer's weights adds to the network's output, in original units."""
    groups, rows, columns = layer.magnitude.shape
    before, after = scales_at(scales, layer.inputs), scales_at(scales, layer.outputs)
    row_range = _largest(layer.magnitude, before.view(groups, columns))
    if layer.diagonal is not None and shortcut != "apart":
        diagonal = layer.diagonal - before / after if shortcut == "residual" else layer.diagonal
        row_range = torch.maximum(row_range, (diagonal.abs() / before).view(groups, rows))
    if layer.one_step:
        out = after.view(groups, rows)
        row_range = (row_range * out).amax(layer.one_step, keepdim=True) / out
    power = (before.square() * layer.variance).view(groups, columns, 1)
    seen = (layer.seen @ power).squeeze(2)
    return layer.taps / 12 * (layer.gain.view(groups, rows) * (row_range / steps).square() * seen).sum()


def _largest(magnitude: Tensor, before: Tensor) -> Tensor:
    """Return the largest magnitude / before of each row (G, R), of (G, R, C) and (G, C).

    The gradient goes to the largest alone: through the whole matrix it would cost more than all else.
    """
    with torch.no_grad():
        place = (magnitude / before.unsqueeze(1)).argmax(2)
    return magnitude.gather(2, place.unsqueeze(2)).squeeze(2) / before.gather(1, place)


def _activation_noise(tensor: TensorStatistics, scales: Tensor, steps: float) -> Tensor:
    """Noise power that rounding a tensor adds to the network's output, in original units."""
    c = scales_at(scales, tensor.channels)
    step = ((c * tensor.high).amax() + (c * tensor.low).amax()) / steps
    return step.square() / 12 * (tensor.gain / c.square()).sum()


def chain_gains(energies: Sequence[Tensor], active: Sequence[Tensor]) -> list[Tensor]:
    """Return the gains from the outputs of the layers of a chain to its output, (O,) each.

    Noise of every channel and position is taken as independent, the sum of squares over the kernels.

    Args:
        energies: (G, O/G, I/G) sum of squares of each kernel, in forward order.
        active: (O,) of all layers but the last, the share of positions where the output passes the ReLU; 1 without one.
    """
    gains = [torch.ones(energies[-1].shape[:2].numel(), dtype=torch.float64)]
    for energy, share in zip(reversed(energies[1:]), reversed(active), strict=True):
        gains.append(share * gain_through(energy, gains[-1]))
    return gains[::-1]


def gain_through(energy: Tensor, gain: Tensor) -> Tensor:
    """Return the gains (I,) from the inputs of a layer, from those of its outputs (O,) and (G, O/G, I/G) energies."""
    return (gain.view(len(energy), 1, -1) @ energy).flatten()
