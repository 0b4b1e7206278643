"""How long learned rounding takes, found out before it begins."""

from collections.abc import Collection
from time import perf_counter

import torch
from torch import nn

from repquant.numerics.adaround import LayerRows, RoundingOptions, learn_rounding
from repquant.numerics.affine import Scheme
from repquant.quant.convert import Layer, quantization_points

_TIMED_STEPS = 4  # after one that is not counted


def seconds_a_step(model: nn.Module, scheme: Scheme, keep_float: Collection[str] = ()) -> float:
    """Return the seconds that one step of learning takes for all layers together, measured on this machine now.

    Each shape of layer learns a few steps, with the default options, from random rows: what they hold makes no
    difference to the time.

    Args:
        model: deploy model in float.
        scheme: of the weights.
        keep_float: layers that stay in float.
    """
    layers = [layer for layer in quantization_points(model, keep_float).values() if isinstance(layer, Layer)]
    shapes = [
        (len(layer.weight), layer.groups if isinstance(layer, nn.Conv2d) else 1, layer.weight[0].numel())
        for layer in layers
    ]
    timed = {shape: _seconds(*shape, scheme) for shape in set(shapes)}
    return sum(timed[shape] for shape in shapes)


def _seconds(channels: int, groups: int, weights: int, scheme: Scheme) -> float:
    generator, options = torch.Generator().manual_seed(0), RoundingOptions(steps=1 + _TIMED_STEPS)
    rows = LayerRows(
        steps=torch.randint(0, 256, (options.batch, groups, weights), dtype=torch.int16, generator=generator),
        targets=torch.randn(options.batch, channels, generator=generator),
        input_scale=1.0,
    )
    counts, ones, bias = torch.randn(channels, weights, generator=generator), torch.ones(channels), torch.ones(channels)
    moments: list[float] = []

    def on_step(_: int) -> None:
        moments.append(perf_counter())

    learn_rounding(rows, counts, ones, bias, scheme, options, generator, on_step)
    return (moments[-1] - moments[0]) / _TIMED_STEPS
