"""Empirical bias correction: give every channel of a quantized layer the mean that it has in float.

Rounded weights shift the mean of a layer's output, because its inputs (after a ReLU) have means that are not zero. The
shift is measured and subtracted from the bias (Nagel et al., "Data-Free Quantization through Weight Equalization and
Bias Correction", ICCV 2019; the empirical form, since the branches of a re-parameterized block are correlated).
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, fx, nn

from repquant.graph.copies import copy_graph
from repquant.graph.operators import layer_nodes
from repquant.graph.run import Batch, batch_size, run
from repquant.methods.layer_positions import maps, parameters_of
from repquant.simulation.network import quantized_layers


@torch.no_grad()
def correct_biases(
    graph: fx.GraphModule,
    simulated: fx.GraphModule,
    batches: Iterable[Batch],
    on_batch: Callable[[int], None] = lambda _: None,
) -> fx.GraphModule:
    """Return a copy of the float network whose biases make up for the mean error of its quantized form.

    Simulating the copy on the same grids gives the corrected network. Each batch runs through both; a quantized layer's
    output is shifted to the float mean before it goes on, so that a layer is corrected for its own error, with the
    layers before it corrected already, in one pass. Layers without bias stay as they are.

    Args:
        graph: from `capture`; it is not changed.
        simulated: the same network after `simulate` with `ends=False`.
        batches: see `graph.run.inputs_of`; one at a time is in memory.
        on_batch: called with the number of images after each batch.

    Raises:
        InputError: a batch that does not fit the network.
    """
    layers = quantized_layers(simulated)
    shifts = {name: _Shift(layer) for name, layer in layers.items() if parameters_of(layer)[1] is not None}
    floating, quantized = layer_nodes(graph), _calls(simulated)
    see_float = {floating[name].name: shift.see_float for name, shift in shifts.items()}
    correct = {quantized[name].name: shift.correct for name, shift in shifts.items()}
    images = 0
    for batch in batches:
        count = batch_size(graph, batch)
        for shift in shifts.values():
            shift.images = count
        run(graph, batch, see_float)
        run(simulated, batch, correct)
        images += count
        on_batch(count)
    corrected = copy_graph(graph)
    for name, shift in shifts.items():
        _, bias = parameters_of(corrected.get_submodule(name))
        assert bias is not None
        bias += (shift.total / max(images, 1)).to(bias.dtype)
    return corrected


def _calls(graph: fx.GraphModule) -> dict[str, fx.Node]:
    return {str(node.target): node for node in graph.graph.nodes if node.op == "call_module"}


class _Shift:
    """What a layer's mean outputs (C,) lack, summed over images.

    Attributes:
        images: in the batch that runs.
    """

    def __init__(self, layer: nn.Module) -> None:
        self._layer = layer
        self._mean = torch.empty(0)
        self.images = 0
        self.total = torch.zeros((), dtype=torch.float64)

    def see_float(self, y: Tensor) -> None:
        self._mean = self._channel_mean(y)

    def correct(self, y: Tensor) -> Tensor:
        difference = self._mean - self._channel_mean(y)
        self.total = self.total + self.images * difference
        spatial = 0 if isinstance(self._layer, nn.Linear) else y.dim() - 2
        return y + difference.to(y.dtype).reshape(-1, *[1] * spatial)

    def _channel_mean(self, y: Tensor) -> Tensor:
        """Return the mean of each channel in float64."""
        return maps(y, self._layer).transpose(0, 1).flatten(1).mean(1, dtype=torch.float64)
