"""How long learned rounding takes, found out before it begins."""

from collections.abc import Iterable
from time import perf_counter

import torch
from torch import fx

from repquant.graph.grouping import TransposedConvolution
from repquant.methods.layer_positions import groups_of, parameters_of
from repquant.numerics.adaround import LayerRows, learn_rounding
from repquant.numerics.affine import Scheme
from repquant.numerics.rounding_options import RoundingOptions

_TIMED_STEPS = 4  # after one that is not counted


def seconds_a_step(graph: fx.GraphModule, layers: Iterable[str], scheme: Scheme) -> float:
    """Return the seconds that one step of learning takes for all layers together, measured on this machine now.

    Each shape of layer learns a few steps, with the default options, from random rows: what they hold makes no
    difference to the time.

    Args:
        graph: from `capture`.
        layers: names of those that will be learned; a transposed convolution takes no time.
        scheme: of the weights.
    """
    learned = [layer for name in layers if not isinstance(layer := graph.get_submodule(name), TransposedConvolution)]
    weights = [(groups_of(layer), parameters_of(layer)[0]) for layer in learned]
    shapes = [(len(weight), groups, weight[0].numel(), weight.device) for groups, weight in weights]
    timed = {shape: _seconds(*shape, scheme) for shape in set(shapes)}
    return sum(timed[shape] for shape in shapes)


def _seconds(channels: int, groups: int, weights: int, device: torch.device, scheme: Scheme) -> float:
    generator, options = torch.Generator().manual_seed(0), RoundingOptions(steps=1 + _TIMED_STEPS)
    steps = torch.randint(0, 256, (options.batch, groups, weights), dtype=torch.int16, generator=generator)
    targets = torch.randn(options.batch, channels, generator=generator)
    rows = LayerRows(steps=steps.to(device), targets=targets.to(device), input_scale=1.0)
    counts = torch.randn(channels, weights, generator=generator).to(device)
    ones = torch.ones(channels, device=device)
    moments: list[float] = []

    def on_step(_: int) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        moments.append(perf_counter())

    learn_rounding(rows, counts, ones, ones, scheme, options, generator, on_step)
    return (moments[-1] - moments[0]) / _TIMED_STEPS
