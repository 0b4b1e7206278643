"""Round the weights of a network with error feedback, each layer for the inputs that it will meet.

The graph stays as it is, nothing is trained, and the images need no labels.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, fx, nn

from repquant.errors import InputError
from repquant.graph.chunks import Shelves, run_in_chunks, shelve_inputs
from repquant.graph.copies import copy_graph
from repquant.graph.grouping import TransposedConvolution
from repquant.graph.operators import layer_nodes
from repquant.graph.plan import Plan
from repquant.graph.run import Batch, batch_size, run
from repquant.graph.shelf import Shelf, Shelved
from repquant.methods.kernel_rounding import round_kernels
from repquant.methods.layer_positions import (
    groups_of,
    inputs_at,
    kernel_rows,
    maps,
    of_rows,
    outputs_of,
    parameters_of,
    weight_of_rows,
)
from repquant.methods.rounded import Rounded
from repquant.numerics.affine import Grid, stored_scale
from repquant.numerics.channel_fit import ChannelFit
from repquant.numerics.image_weights import image_weights
from repquant.numerics.missing_outputs import MissingOutputs, correct_weights
from repquant.numerics.moments import Mean
from repquant.numerics.patches import Positions, outputs_at
from repquant.numerics.second_moments import SecondMoments
from repquant.simulation.integers import quantize_parameters, smallest_scale
from repquant.simulation.layers import FakeQuantize
from repquant.simulation.network import quantized_layers, read_by_layers, simulate


@torch.no_grad()
def round_weights(
    graph: fx.GraphModule,
    plan: Plan,
    batches: Iterable[Batch],
    *,
    patches: int = 4096,
    on_layer: Callable[[int], None] = lambda _: None,
) -> Rounded:
    """Return the float network with weights on the grids of a plan, rounded with error feedback.

    The images pass through the quantized network once. When they reach a layer, its weights are rounded for the second
    moments of the input that is there (`methods.kernel_rounding`), corrected before for what the outputs lack with this
    input (`numerics.missing_outputs`). The scales of its weights get what the outputs lack in size
    (`numerics.channel_fit`), and its bias takes up what is left between the mean outputs; then they go on through the
    rounded layer. The mean needs no feedback, so the moments of a layer with a bias are taken about it.
    With activations of 8 bits no image counts more than the median one (`numerics.image_weights`).

    Args:
        graph: from `capture`; it is not changed.
        plan: for this network; layers without a weight grid get that of their largest weights.
        batches: see `graph.run.inputs_of`; they are read once. Memory holds what a batch takes, and what
            `graph.shelf` keeps of the others.
        patches: input patches that a layer looks at, at most, the same number from each image.
        on_layer: called with 1 after each layer.

    Raises:
        InputError: no batch came, or one does not fit the network.
    """
    with Shelf() as shelf:
        inputs = shelve_inputs(graph, batches, shelf)
        samples = _sample_outputs(graph, plan, inputs, patches)
        simulated = simulate(graph, plan, ends=False)
        layers = quantized_layers(simulated)
        rounded = copy_graph(graph)

        def round_layer(name: str, seen: list[Iterable[Tensor]]) -> None:
            (inputs,) = seen
            layer, float_layer = layers[name], rounded.get_submodule(name)
            grid = layer.integers.weight_grid
            x = _Quantized(layer.input, inputs)
            grid = _round_layer(float_layer, grid, samples.pop(name), x)
            weight, bias = parameters_of(float_layer)
            layer.adopt(quantize_parameters(weight, bias, x.scale, grid, groups_of(float_layer)))
            on_layer(1)

        run_in_chunks(simulated, inputs, read_by_layers(simulated), round_layer)
    grids = {name: layer.integers.weight_grid for name, layer in layers.items()}
    return Rounded(rounded, replace(plan, weight_grids=grids))


@dataclass(frozen=True)
class _Quantized:
    """The values of chunks, rounded to a grid."""

    quantize: FakeQuantize
    chunks: Iterable[Tensor]

    @property
    def scale(self) -> Tensor:
        return torch.tensor(self.quantize.scale)

    def __iter__(self) -> Iterator[Tensor]:
        return (self.quantize.steps(part).mul_(self.quantize.scale) for part in self.chunks)


class _Seen:
    """What a layer saw of its inputs (G, K), and how its outputs compare with the float ones."""

    def __init__(self, images: int) -> None:
        self.rows = 0
        self.inputs, self.missing, self.fit, self.mean = SecondMoments(), MissingOutputs(), ChannelFit(images), Mean()


class _Sample:
    """Positions of a layer's output, as many for each image, and the float outputs there.

    Args:
        layer: in float.
        images: how many there are in all.
        patches: positions in all, at most; but at least one of each image.
        shelf: where the float outputs wait.
        weighted: whether loud images count less, see `image_weights`.
    """

    def __init__(self, layer: nn.Module, images: int, patches: int, shelf: Shelf, *, weighted: bool) -> None:
        self._layer = layer
        self._images = images
        self._patches = patches
        self._shelf = shelf
        self._weighted = weighted
        self._is_transposed = isinstance(layer, TransposedConvolution)
        self._outputs: list[Shelved] = []
        self._powers: list[Tensor] = []
        self._rows = self._places = 0
        self._drawn: Positions | None = None

    def see(self, y: Tensor, images: int) -> None:
        """Take in the float output for the next `images` images."""
        values = maps(y, self._layer)
        if self._drawn is None:
            # Windows of an image, say, may lie along the first dimension: each is as an image of its own.
            self._rows, self._places = self._images * len(values) // images, values.shape[2]
            self._drawn = self._positions(self._places)
        positions = self._drawn.draw(len(values)).to(y.device)
        outputs = outputs_at(values, positions)
        self._powers.append(outputs.unflatten(0, tuple(positions.shape)).double().square().mean((1, 2)))
        self._outputs.append(self._shelf.put(outputs))

    def mean_of(self, layer: nn.Module, x: Iterable[Tensor]) -> Tensor:
        """Return the mean (C,) of the outputs of another layer at the same positions, for its input in chunks."""
        mean, positions = Mean(), self._positions(self._places)
        for part, weights in zip(x, self._weights(), strict=True):
            outputs = outputs_at(maps(layer(part), layer), positions.draw(len(part)).to(part.device))
            mean.update(outputs, _of_positions(weights, outputs))
        return mean.value()

    def compare(self, x: Iterable[Tensor]) -> _Seen:
        """Return what the outputs are computed from, and how these compare with float ones.

        Those of a transposed convolution, whose groups share scales, are not compared. The float outputs leave the
        shelf.

        Args:
            x: the layer's quantized input in chunks.
        """
        seen, positions = _Seen(self._images), None
        for part, weights, shelved in zip(x, self._weights(), self._outputs, strict=True):
            if positions is None:
                # A place of the input of a transposed convolution reaches many outputs: its own places are drawn.
                positions = self._positions(maps(part, self._layer).shape[2] if self._is_transposed else self._places)
            rows = inputs_at(self._layer, part, positions.draw(len(part)).to(part.device))
            seen.rows += len(rows)
            seen.inputs.update(rows, _of_positions(weights, rows))
            wanted = self._shelf.get(shelved)
            seen.mean.update(wanted, _of_positions(weights, wanted))
            if not self._is_transposed:
                given = outputs_of(self._layer, rows)
                seen.fit.update(given, wanted, _of_positions(weights, rows))
                seen.missing.update(rows, wanted - given, _of_positions(weights, rows))
        self._shelf.drop(self._outputs)
        return seen

    def _weights(self) -> list[Tensor]:
        """Return how much each image of each chunk counts."""
        powers = torch.cat(self._powers)
        weights = image_weights(powers) if self._weighted else torch.ones_like(powers)
        return list(weights.tensor_split([*itertools.accumulate(len(part) for part in self._powers)][:-1]))

    def _positions(self, places: int) -> Positions:
        return Positions(self._rows, places, self._patches)


def _of_positions(weights: Tensor, rows: Tensor) -> Tensor:
    """Return weights of images for rows, as many of each image."""
    return weights.repeat_interleave(len(rows) // len(weights))


def _sample_outputs(graph: fx.GraphModule, plan: Plan, inputs: Shelves, patches: int) -> dict[str, _Sample]:
    images = sum(batch_size(graph, batch) for batch in inputs)
    nodes = {name: node for name, node in layer_nodes(graph).items() if name in plan.layout.layers}
    if images == 0:
        raise InputError("there are no calibration images; give at least one batch")
    weighted = plan.target.activation.bits == 8  # with fewer the peaks of all images are clipped (decision 20)
    samples = {
        name: _Sample(graph.get_submodule(name), images, patches, inputs.shelf, weighted=weighted) for name in nodes
    }
    for batch in inputs:
        see = {name: partial(sample.see, images=batch_size(graph, batch)) for name, sample in samples.items()}
        run(graph, batch, {node.name: see[name] for name, node in nodes.items()})
    return samples


def _round_layer(layer: nn.Module, grid: Grid, sample: _Sample, x: _Quantized) -> Grid:
    """Round the layer's weight and correct scales and bias, in place, for the quantized input `x` in chunks.

    Returns:
        The grid of the weight: that which was given, with other scales.
    """
    weight, bias = parameters_of(layer)
    seen, central = sample.compare(x), bias is not None
    mean, moments, wanted = seen.inputs.mean(), seen.inputs.moments(central=central), seen.mean.value()
    gains = seen.fit.gains(central=central, pooled=grid.scheme.channel_axis is None)
    if not isinstance(layer, TransposedConvolution):
        kernels, lacking = torch.stack(kernel_rows(layer, len(moments))), seen.missing.moments(central=central)
        weight.copy_(weight_of_rows(layer, list(correct_weights(kernels, moments, lacking, mean, seen.rows))))
    integers, grid = round_kernels(layer, grid, moments, smallest_scale(bias, x.scale, grid.scale.shape))
    grid = replace(grid, scale=stored_scale(grid.scale * gains, grid.scheme))
    scales = of_rows(layer, grid.scale, len(moments))
    rounded = [part * scale.unsqueeze(1) for part, scale in zip(integers, scales, strict=True)]
    weight.copy_(weight_of_rows(layer, rounded))
    if isinstance(layer, TransposedConvolution) and bias is not None:
        bias.add_(wanted - sample.mean_of(layer, x))
    elif bias is not None:
        bias.copy_(wanted - torch.cat([kernel @ part for kernel, part in zip(rounded, mean, strict=True)]))
    return grid
