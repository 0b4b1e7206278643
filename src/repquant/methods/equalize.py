"""Cross-layer equalization of any captured network: its free channel scales, chosen so that rounding loses less.

The noise model needs to know how much of the noise at a place reaches the output. Where the layers are a chain (RepVGG,
VGG) the closed form of `numerics.equalization.chain_gains` says so; elsewhere `output_gains` measures it with random
vectors on a few images. On the built-in RepVGG-tiny neither is better for every target (KL x 1000, weights rounded to
the nearest, largest values as ranges: tensorrt 1.98 closed and 2.62 measured, onnxruntime 1.80 and 1.45), so a chain
keeps the closed form, which needs no pass backward.
"""

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from repquant.choices import Equalization, Shortcut
from repquant.graph.batches import first_images
from repquant.graph.channels import Channels, apply_scales, find_channels
from repquant.graph.grouping import TransposedConvolution, channel_dim, grouped, taps_of
from repquant.graph.interface import captured_of
from repquant.graph.layout import Layout, find_layout
from repquant.graph.operators import find_operator, layer_nodes, operands
from repquant.graph.run import Batch, Observer, inputs_of, observe
from repquant.methods.channel_statistics import ChannelMoments, ChannelRanges
from repquant.methods.identity import diagonal_center, may_have_identity
from repquant.methods.output_gains import output_gains
from repquant.numerics.equalization import (
    LayerScales,
    LayerStatistics,
    TensorStatistics,
    balance_ranges,
    chain_gains,
    gain_through,
    minimize_noise,
)
from repquant.targets.target import Target

NOISE_IMAGES = 256
"""Images that the noise model looks at: with 128 RepVGG-A0 loses a fifth more, with 512 about as much (docs/log.md)."""

_QUIET = 0.01  # a channel counts as at least this share of the loudest: scales of silent channels stay bounded
_GAIN_IMAGES = 32  # of the first batch; with 8 a RepViT loses more than twice as much (docs/log.md)


def equalize(
    graph: fx.GraphModule,
    method: Equalization,
    batches: Iterable[Batch],
    target: Target,
    layout: Layout | None = None,
    shortcut: Shortcut = "inside",
    on_batch: Callable[[int], None] = lambda _: None,
) -> fx.GraphModule:
    """Return a copy of a captured network whose channels are scaled for quantization; it computes the same.

    The arguments and errors are those of `find_scales`.
    """
    return apply_scales(graph, *find_scales(graph, method, batches, target, layout, shortcut, on_batch))


def find_scales(
    graph: fx.GraphModule,
    method: Equalization,
    batches: Iterable[Batch],
    target: Target,
    layout: Layout | None = None,
    shortcut: Shortcut = "inside",
    on_batch: Callable[[int], None] = lambda _: None,
) -> tuple[Channels, Tensor]:
    """Return the free channels of a captured network, and a scale (count,) float64 for each.

    What can't be scaled is left alone.

    Args:
        graph: from `capture`.
        method: "ranges" (the pairwise rule, which needs no images) or "noise" (the noise model).
        batches: calibration images; the first `NOISE_IMAGES` are read, in whole batches.
        target: the grids that the noise model reckons with.
        layout: what is rounded; everything that the target rounds if left out.
        shortcut: where the diagonals that may hold an identity branch will be kept.
        on_batch: called with the number of images after each batch.

    Raises:
        InputError: there are no images, or a batch does not fit the network.
    """
    channels = find_channels(graph)
    if not channels.count:
        return channels, torch.ones(0, dtype=torch.float64)
    if method == "ranges":
        layers = [_layer_scales(graph, channels, name) for name in channels.layers]
        return channels, balance_ranges(layers, channels.count)
    layout = layout or find_layout(graph, target)
    chain = _find_chain(graph, channels)
    tensors = [(source,) for source in chain.values()] if chain else [part.sources for part in layout.tensors.values()]
    tensors = [sources for sources in tensors if any((channels.values[name] >= 0).any() for name in sources)]
    readings = _read(graph, batches, channels, {name for sources in tensors for name in sources}, on_batch)
    gains = _chain_gains(graph, chain, readings) if chain else _measured_gains(graph, channels, readings)
    scales = minimize_noise(
        [_layer_statistics(graph, channels, name, readings, gains, target) for name in layout.layers],
        [_tensor_statistics(channels, sources, readings, gains, target) for sources in tensors],
        channels.count,
        shortcut,
        weight_steps=target.weight.qmax,
        activation_steps=target.activation.qmax - (0 if target.activation.symmetric else target.activation.qmin),
    )
    return channels, scales


def _find_chain(graph: fx.GraphModule, channels: Channels) -> dict[str, str]:
    """Return the layers of a network without branches and the nodes that they read; nothing for another network."""
    nodes = layer_nodes(graph)
    for before, after in itertools.pairwise(nodes):
        node = nodes[before]
        while node is not nodes[after]:
            (node, *others) = node.users
            row = find_operator(node)
            if others or not (node is nodes[after] or (row is not None and row.is_homogeneous)):
                return {}
        outputs, inputs = channels.layers[before].outputs, channels.layers[after].inputs
        if not torch.equal(outputs, inputs) or len(outputs.unique()) < len(outputs) or (outputs < 0).any():
            return {}
    return {name: operands(node)[0].name for name, node in nodes.items()}


@dataclass(frozen=True, kw_only=True)
class _Readings:
    """What one pass over the images tells: moments of the inputs of layers, ranges of nodes, and the first images."""

    moments: Mapping[str, ChannelMoments]
    ranges: Mapping[str, ChannelRanges]
    images: list[Tensor]


class _FirstImages:
    """Batches of which the first images are kept, and the size of the one that runs is known."""

    def __init__(self, graph: fx.GraphModule, batches: Iterable[Batch]) -> None:
        self._graph = graph
        self._batches = batches
        self.images: list[Tensor] = []
        self.batch_size = 0

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._batches:
            inputs = inputs_of(self._graph, batch)
            self.batch_size = len(inputs[0])
            if not self.images:
                is_free = captured_of(self._graph).dynamic_batch
                self.images = [image[: _GAIN_IMAGES if is_free else None].clone() for image in inputs]
            yield batch


def _read(
    graph: fx.GraphModule,
    batches: Iterable[Batch],
    channels: Channels,
    ranged: Collection[str],
    on_batch: Callable[[int], None],
) -> _Readings:
    ranges = {name: ChannelRanges(tuple(channels.values[name].shape)) for name in ranged}
    moments: dict[str, ChannelMoments] = {}
    observers: dict[str, list[Observer]] = {name: [] for name in ranged}
    for name, node in layer_nodes(graph).items():
        moments[name] = ChannelMoments(channel_dim(graph.get_submodule(name)))
        observers.setdefault(operands(node)[0].name, []).append(moments[name].update)
    first = _FirstImages(graph, first_images(batches, NOISE_IMAGES))
    for name, statistics in ranges.items():
        observers[name].append(_ranging(statistics, first))
    observe(graph, first, {name: _each(parts) for name, parts in observers.items()}, on_batch)
    return _Readings(moments=moments, ranges=ranges, images=first.images)


def _ranging(statistics: ChannelRanges, images: _FirstImages) -> Observer:
    return lambda value: statistics.update(value, images.batch_size)


def _each(observers: Sequence[Observer]) -> Observer:
    def show(value: Tensor) -> None:
        for observer in observers:
            observer(value)

    return show


@dataclass(frozen=True, kw_only=True)
class _Gains:
    """Noise power at the output for noise of power 1: in the output channels of layers, and in nodes."""

    layers: Mapping[str, Tensor]
    nodes: Mapping[str, Tensor]


def _chain_gains(graph: fx.GraphModule, chain: Mapping[str, str], readings: _Readings) -> _Gains:
    energies = [_kernel(graph.get_submodule(name)).square().sum(3) for name in chain]
    gains = chain_gains(energies, [readings.moments[name].active for name in list(chain)[1:]])
    return _Gains(
        layers=dict(zip(chain, gains, strict=True)),
        nodes={
            chain[name]: gain_through(energy, gain) for name, energy, gain in zip(chain, energies, gains, strict=True)
        },
    )


def _measured_gains(graph: fx.GraphModule, channels: Channels, readings: _Readings) -> _Gains:
    ranged = {name: statistics.shape for name, statistics in readings.ranges.items()}
    shapes = dict(ranged)
    calls = layer_nodes(graph)
    for name, call in calls.items():
        rank, dim = call.meta["val"].ndim, channel_dim(graph.get_submodule(name))
        shapes[call.name] = tuple(len(channels.layers[name].outputs) if d == dim else 1 for d in range(-rank, 0))
    gains = output_gains(graph, readings.images, shapes)
    return _Gains(
        layers={name: gains[call.name].flatten() for name, call in calls.items()},
        nodes={name: gains[name].sum_to_size(shape) for name, shape in ranged.items()},
    )


def _layer_statistics(
    graph: fx.GraphModule, channels: Channels, name: str, readings: _Readings, gains: _Gains, target: Target
) -> LayerStatistics:
    layer, indices = graph.get_submodule(name), channels.layers[name]
    kernel = _kernel(layer)
    magnitude = kernel.abs()
    diagonal = None
    if may_have_identity(layer):
        assert isinstance(layer.weight, Tensor)
        diagonal = diagonal_center(layer.weight.detach()).double().cpu()
        channel, size = torch.arange(len(diagonal)), kernel.shape[2]
        magnitude[channel // size, channel % size, channel % size, kernel.shape[3] // 2] = 0.0
    return LayerStatistics(
        inputs=indices.inputs,
        outputs=indices.outputs,
        magnitude=magnitude.amax(3),
        diagonal=diagonal,
        seen=(kernel != 0).any(3).double(),
        variance=readings.moments[name].variance,
        gain=gains.layers[name],
        taps=taps_of(layer),
        one_step=_one_step(layer, target),
    )


def _one_step(layer: nn.Module, target: Target) -> tuple[int, ...]:
    if target.weight.channel_axis is None:
        return (0, 1)
    # The groups of a transposed convolution share the scales of their channels.
    return (0,) if isinstance(layer, TransposedConvolution) else ()


def _tensor_statistics(
    channels: Channels, sources: Sequence[str], readings: _Readings, gains: _Gains, target: Target
) -> TensorStatistics:
    def joined(parts: Iterable[Tensor]) -> Tensor:
        return torch.cat([part.flatten() for part in parts])

    high = joined(readings.ranges[name].high for name in sources)
    low = joined(readings.ranges[name].low for name in sources)
    amax = torch.maximum(high, low)
    floor = amax.max() * _QUIET
    high = torch.where(amax < floor, floor, high)
    if target.activation.symmetric:
        high, low = torch.maximum(high, low), torch.zeros_like(low)
    return TensorStatistics(
        channels=joined(channels.values[name] for name in sources),
        high=high,
        low=low,
        gain=joined(gains.nodes[name] for name in sources),
    )


def _layer_scales(graph: fx.GraphModule, channels: Channels, name: str) -> LayerScales:
    indices = channels.layers[name]
    magnitude = _kernel(graph.get_submodule(name)).abs().amax(3)
    return LayerScales(inputs=indices.inputs, outputs=indices.outputs, magnitude=magnitude)


def _kernel(layer: nn.Module) -> Tensor:
    """Return a layer's weight (G, O/G, I/G, taps) in float64 on the CPU."""
    assert isinstance(layer.weight, Tensor)
    return grouped(layer, layer.weight.detach().double().cpu().contiguous())
