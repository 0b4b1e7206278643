"""Round the weights of a network with error feedback, each layer for the inputs that it will meet.

The graph stays as it is, nothing is trained, and the images need no labels.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, fx, nn

from repquant.errors import InputError
from repquant.graph.chunks import run_in_chunks
from repquant.graph.copies import copy_graph
from repquant.graph.grouping import TransposedConvolution
from repquant.graph.operators import layer_nodes
from repquant.graph.plan import Plan
from repquant.graph.run import Batch, batch_size, run
from repquant.methods.layer_positions import (
    groups_of,
    inputs_at,
    kernel_rows,
    maps,
    parameters_of,
    row_scales,
    weight_of_rows,
)
from repquant.methods.rounded import Rounded
from repquant.numerics.affine import Grid
from repquant.numerics.feedback_rounding import round_with_feedback
from repquant.numerics.patches import draw_positions, outputs_at
from repquant.simulation.integers import quantize_parameters
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
    moments of the input that is there, and its bias takes up what is left between the mean outputs; then they go on
    through the rounded layer. The mean needs no feedback, so the moments of a layer with a bias are taken about it.

    Args:
        graph: from `capture`; it is not changed.
        plan: for this network; layers without a weight grid get that of their largest weights.
        batches: see `graph.run.inputs_of`; they are kept, and so are the values of the network that a layer still
            needs, of all images.
        patches: input patches that a layer looks at, at most, the same number from each image.
        on_layer: called with 1 after each layer.

    Raises:
        InputError: no batch came, or one does not fit the network.
    """
    kept = list(batches)
    simulated = simulate(graph, plan, ends=False)
    layers = quantized_layers(simulated)
    samples = _sample_outputs(graph, plan, kept, patches)
    rounded = copy_graph(graph)

    def round_layer(name: str, seen: list[list[Tensor]]) -> None:
        (inputs,) = seen
        layer, float_layer = layers[name], rounded.get_submodule(name)
        grid = layer.integers.weight_grid
        sample = samples.pop(name)
        x = [layer.input.steps(part) * layer.input.scale for part in inputs]
        _round_layer(float_layer, grid, sample, x)
        scale = torch.tensor(layer.input.scale)
        weight, bias = parameters_of(float_layer)
        layer.adopt(quantize_parameters(weight, bias, scale, grid, groups_of(float_layer)))
        on_layer(1)

    run_in_chunks(simulated, kept, read_by_layers(simulated), round_layer)
    grids = {name: layer.integers.weight_grid for name, layer in layers.items()}
    return Rounded(rounded, replace(plan, weight_grids=grids))


class _Sample:
    """Positions (N, P) of a layer's output, as many for each image, and the float outputs (N*P, C) there."""

    def __init__(self, layer: nn.Module, images: int, patches: int) -> None:
        self._layer = layer
        self._images = images
        self._patches = patches
        self._positions = torch.empty(0, 0)
        self._outputs: list[Tensor] = []
        self._seen = 0

    def see(self, y: Tensor, images: int) -> None:
        """Keep what is needed of the float output for the next `images` images."""
        places = maps(y, self._layer)
        if not self._outputs:
            # Windows of an image, say, may lie along the first dimension: each is as an image of its own.
            rows = self._images * len(places) // images
            self._positions = draw_positions(rows, places.shape[2], self._patches).to(y.device)
        self._outputs.append(outputs_at(places, self._positions[self._seen : self._seen + len(y)]))
        self._seen += len(y)

    def outputs(self) -> Tensor:
        """Return the float outputs."""
        return torch.cat(self._outputs)

    def outputs_of(self, layer: nn.Module, x: list[Tensor]) -> Tensor:
        """Return the outputs of another layer at the same positions, for its input in chunks."""
        chunks = self._positions.split([len(part) for part in x])
        return torch.cat([outputs_at(maps(layer(part), layer), chunk) for part, chunk in zip(x, chunks, strict=True)])

    def inputs(self, x: list[Tensor]) -> Tensor:
        """Return what the outputs are computed from, (N*P, groups, K), for the layer's input in chunks."""
        positions = self._positions
        if isinstance(self._layer, TransposedConvolution):  # a place of its input reaches many outputs
            places = maps(x[0], self._layer).shape[2]
            positions = draw_positions(len(positions), places, self._patches).to(x[0].device)
        chunks = positions.split([len(part) for part in x])
        return torch.cat([inputs_at(self._layer, part, chunk) for part, chunk in zip(x, chunks, strict=True)])


def _sample_outputs(graph: fx.GraphModule, plan: Plan, batches: list[Batch], patches: int) -> dict[str, _Sample]:
    images = sum(batch_size(graph, batch) for batch in batches)
    nodes = {name: node for name, node in layer_nodes(graph).items() if name in plan.layout.layers}
    if images == 0:
        raise InputError("there are no calibration images; give at least one batch")
    samples = {name: _Sample(graph.get_submodule(name), images, patches) for name in nodes}
    for batch in batches:
        see = {name: partial(sample.see, images=batch_size(graph, batch)) for name, sample in samples.items()}
        run(graph, batch, {node.name: see[name] for name, node in nodes.items()})
    return samples


def _round_layer(layer: nn.Module, grid: Grid, sample: _Sample, x: list[Tensor]) -> None:
    """Round the layer's weight to `grid` and correct its bias, in place, for the quantized input `x` in chunks."""
    weight, bias = parameters_of(layer)
    inputs = sample.inputs(x).unbind(1)  # (rows, K) for each group
    kernels = kernel_rows(layer, len(inputs))
    scales = row_scales(layer, grid, len(inputs))
    rounded, means = [], []
    for patch, kernel, scale in zip(inputs, kernels, scales, strict=True):
        mean = patch.mean(0)
        varying = patch if bias is None else patch - mean
        moments = varying.T @ varying / len(varying)
        integers = round_with_feedback(kernel, moments, scale, grid.scheme.qmin, grid.scheme.qmax)
        rounded.append(integers * scale.unsqueeze(1))
        means.append(rounded[-1] @ mean)
    weight.copy_(weight_of_rows(layer, rounded))
    if bias is None:
        return
    if isinstance(layer, TransposedConvolution):
        bias.add_((sample.outputs() - sample.outputs_of(layer, x)).mean(0))
    else:
        bias.copy_(sample.outputs().mean(0) - torch.cat(means))
