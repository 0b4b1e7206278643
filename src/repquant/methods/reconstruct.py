"""Learn, layer by layer, which way each weight rounds so that the layer's float output is reproduced.

A pass of the float network keeps its outputs at sampled positions. Then the quantized network runs once on all images,
and each layer is learned when its input arrives: the layers before it are rounded already, and the targets are those of
the float network, as in BRECQ (Li et al., ICLR 2021). The core is `repquant.numerics.adaround`.

The weights of transposed convolutions are rounded to nearest: their outputs sum over kernel places that different
inputs reach, which the rows of the core can't say.

Memory: what a batch takes; at most 256 MiB of one layer's inputs; and a shelf (`graph.shelf`) with the images, the
values that the quantized network still needs, and the float outputs of all layers at 8,192 positions each, with `drop`
the float inputs too.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from repquant.errors import InputError
from repquant.graph.batches import first_images
from repquant.graph.chunks import run_in_chunks, shelve_inputs
from repquant.graph.copies import copy_graph
from repquant.graph.grouping import TransposedConvolution
from repquant.graph.operators import layer_nodes
from repquant.graph.plan import Plan
from repquant.graph.run import Batch, Observer, batch_size, run
from repquant.graph.shelf import Shelf
from repquant.methods.kernel_rounding import keeps_range, round_kernels
from repquant.methods.layer_ends import LayerEnd, find_ends
from repquant.methods.layer_positions import parameters_of
from repquant.methods.method import ReconstructionOptions
from repquant.methods.rounded import Rounded
from repquant.methods.rounding_checkpoint import LearnedLayer, LearnedLayers, fingerprint, load_layers
from repquant.methods.row_samples import ROWS, RowSample
from repquant.numerics.adaround import LayerRows, learn_rounding
from repquant.numerics.affine import Grid, dequantize, stored_scale
from repquant.numerics.second_moments import SecondMoments
from repquant.simulation.integers import quantize_parameters, smallest_scale
from repquant.simulation.layers import QuantizedLayer
from repquant.simulation.network import quantized_layers, read_by_layers, simulate

_DEFAULTS = ReconstructionOptions()
_CHUNK = 1024  # rows whose moments are added at once


@torch.no_grad()
def reconstruct(
    graph: fx.GraphModule,
    plan: Plan,
    batches: Iterable[Batch],
    options: ReconstructionOptions = _DEFAULTS,
    *,
    on_step: Callable[[int], None] = lambda _: None,
    checkpoint: Path | None = None,
) -> Rounded:
    """Return the float network with learned rounding, and the plan with the grids that its weights lie on.

    Each weight goes to one of the two integers next to it, on the steps that error feedback would choose; biases get an
    offset, and layers without one stay without. The result depends on nothing but the arguments and the number of
    threads.

    Args:
        graph: from `capture`; it is not changed.
        plan: for this network; layers without a weight grid get that of their largest weights.
        batches: see `graph.run.inputs_of`; they are read once, up to 8,192 images. 256 to 512 are enough.
        options: how to learn.
        on_step: called with the number of steps done since the last call, those of a checkpoint's layers included.
        checkpoint: file that gets each finished layer; its folder is made. If the file exists, the run goes on after
            the layers in it, with the same result as without interruption.

    Raises:
        InputError: no batch came, or one does not fit the network; gains on per-tensor grids, or a checkpoint that is
            damaged, of other arguments, or can't be written.
    """
    with Shelf() as shelf:
        inputs = shelve_inputs(graph, first_images(batches, ROWS), shelf)
        images = sum(batch_size(graph, batch) for batch in inputs)
        if images == 0:
            raise InputError("there are no calibration images; give at least one batch")
        simulated = simulate(graph, plan, ends=False)
        layers = quantized_layers(simulated)
        if options.affine and plan.target.weight.channel_axis is None:
            raise InputError(
                "affine folds gains into one weight scale per output channel, and these weights have one per tensor; "
                "quantize the weights per channel, or reconstruct without affine"
            )
        learned = LearnedLayers(checkpoint, lambda: fingerprint(graph, plan, inputs, options))
        results = {name: _nearest(layer) for name, layer in layers.items()}
        for name, result in learned.layers.items():
            results[name] = _adopt(layers[name], result)
        waiting = [
            name
            for name in layers
            if name not in learned.layers and not isinstance(graph.get_submodule(name), TransposedConvolution)
        ]
        on_step(options.steps * (len(layers) - len(waiting)))
        ends = find_ends(graph, options.granularity)
        samples = {
            name: RowSample(graph.get_submodule(name), layers[name].input, images, shelf, keep_inputs=options.drop > 0)
            for name in waiting
        }

        def learn(name: str, seen: list[Iterable[Tensor]]) -> None:
            x, *addends = seen
            rows = samples.pop(name).rows(x, addends[0] if addends else None, relu=ends[name].relu)
            result = _learn(name, graph.get_submodule(name), layers[name], rows, options, on_step)
            learned.add(name, result)
            results[name] = _adopt(layers[name], result)

        if waiting:
            _observe(graph, inputs, samples, ends)
            run_in_chunks(simulated, inputs, _reads(simulated, waiting, ends), learn)
    return _rounded(graph, plan, layers, results)


def check_checkpoint(
    graph: fx.GraphModule, plan: Plan, batches: Iterable[Batch], options: ReconstructionOptions, checkpoint: Path
) -> None:
    """Refuse a checkpoint that `reconstruct` would refuse for these arguments, without learning anything.

    Raises:
        InputError: the file is damaged, or was written for other arguments.
    """
    load_layers(checkpoint, fingerprint(graph, plan, first_images(batches, ROWS), options))


def _nearest(layer: QuantizedLayer) -> LearnedLayer:
    integers = layer.integers
    return LearnedLayer(integers.weight, integers.weight_grid.scale, integers.float_bias())


def _grid_with(layer: QuantizedLayer, result: LearnedLayer) -> Grid:
    return replace(layer.integers.weight_grid, scale=result.scale)


def _adopt(layer: QuantizedLayer, result: LearnedLayer) -> LearnedLayer:
    """Give a layer, in place, what was learned, and return that on its device."""
    device = layer.weight.device
    bias = None if result.bias is None else result.bias.to(device)
    result = LearnedLayer(result.integers.to(device), result.scale.to(device), bias)
    grid = _grid_with(layer, result)
    weight, scale = dequantize(result.integers, grid), torch.tensor(layer.input.scale)
    layer.adopt(quantize_parameters(weight, bias, scale, grid))
    assert torch.equal(layer.integers.weight, result.integers)
    return result


def _observe(
    graph: fx.GraphModule, batches: Iterable[Batch], samples: Mapping[str, RowSample], ends: Mapping[str, LayerEnd]
) -> None:
    """Show each sample what the float network has at its layer."""
    sources = {name: node.all_input_nodes[0].name for name, node in layer_nodes(graph).items()}
    for batch in batches:
        count = batch_size(graph, batch)
        inputs: dict[str, Tensor] = {}
        observers: dict[str, list[Observer]] = {}
        for name, sample in samples.items():
            observers.setdefault(sources[name], []).append(_keep(name, inputs))
            observers.setdefault(ends[name].node, []).append(_show(name, inputs, sample, count))
        run(graph, batch, {node: _all(own) for node, own in observers.items()})


def _keep(name: str, inputs: dict[str, Tensor]) -> Observer:
    def keep(x: Tensor) -> None:
        inputs[name] = x

    return keep


def _show(name: str, inputs: dict[str, Tensor], sample: RowSample, images: int) -> Observer:
    def show(y: Tensor) -> None:
        sample.see(inputs.pop(name), y, images)

    return show


def _all(observers: list[Observer]) -> Observer:
    def see(value: Tensor) -> None:
        for observer in observers:
            observer(value)

    return see


def _reads(
    simulated: fx.GraphModule, names: Iterable[str], ends: Mapping[str, LayerEnd]
) -> dict[str, tuple[fx.Node, ...]]:
    """Return the node that each layer reads, and the one that is added to its output before its end."""
    nodes = {node.name: node for node in simulated.graph.nodes}
    reads = read_by_layers(simulated)
    shown = {}
    for name in names:
        end = ends[name]
        addend = () if end.addend is None else (nodes[end.node].args[end.addend],)
        shown[name] = (*reads[name], *(node for node in addend if isinstance(node, fx.Node)))
    return shown


def _learn(
    name: str,
    layer: nn.Module,
    quantized: QuantizedLayer,
    rows: LayerRows,
    options: ReconstructionOptions,
    on_step: Callable[[int], None],
) -> LearnedLayer:
    weight, bias = parameters_of(layer)
    grid = _grid_for(layer, quantized.integers.weight_grid, rows)
    counts = grid.step_counts(weight).flatten(1)
    seed = hashlib.sha256(f"{options.seed}/{name}".encode()).digest()  # of its own, whichever layers came before
    generator = torch.Generator().manual_seed(int.from_bytes(seed[:8]))
    found = learn_rounding(rows, counts, grid.scale, bias, grid.scheme, options, generator, on_step)
    scale = stored_scale(grid.scale * found.gain, grid.scheme) if options.affine else grid.scale
    return LearnedLayer(found.integers.reshape(weight.shape), scale, found.bias)


def _grid_for(layer: nn.Module, grid: Grid, rows: LayerRows) -> Grid:
    """Return the grid of a layer with the steps that error feedback would choose for these rows."""
    if keeps_range(grid.scheme):
        return grid
    moments, (_, bias) = SecondMoments(), parameters_of(layer)
    for part in rows.steps.split(_CHUNK):
        moments.update(part.float() * rows.input_scale, torch.ones(len(part), device=part.device))
    smallest = smallest_scale(bias, torch.tensor(rows.input_scale), grid.scale.shape)
    return round_kernels(layer, grid, moments.moments(central=bias is not None), smallest)[1]


def _rounded(
    graph: fx.GraphModule, plan: Plan, layers: Mapping[str, QuantizedLayer], results: Mapping[str, LearnedLayer]
) -> Rounded:
    rounded = copy_graph(graph)
    grids = {name: _grid_with(layers[name], result) for name, result in results.items()}
    for name, result in results.items():
        weight, bias = parameters_of(rounded.get_submodule(name))
        weight.copy_(dequantize(result.integers, grids[name]))
        if bias is not None:
            assert result.bias is not None
            bias.copy_(result.bias)
    return Rounded(rounded, replace(plan, weight_grids=grids))
