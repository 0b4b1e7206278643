"""From a captured network and its plan to a network that trains, and from there to the integers."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import torch
from torch import Tensor, fx, nn

from repquant.choices import WeightScales
from repquant.errors import InputError
from repquant.graph.copies import copy_graph
from repquant.graph.devices import device_of, on_device
from repquant.graph.names import free_name
from repquant.graph.operators import operands
from repquant.graph.plan import Plan
from repquant.methods.rounded import Rounded
from repquant.numerics.affine import dequantize, to_integers
from repquant.qat.in_place import relu_in_place
from repquant.qat.kernels import KernelSource, PlainKernel
from repquant.qat.layer import QatLayer
from repquant.qat.quantizers import ActivationQuantizer, WeightQuantizer
from repquant.simulation.integers import weight_grid
from repquant.simulation.layers import weight_scheme

_ROUNDING = "rounding"


def make_trainable(
    graph: fx.GraphModule,
    plan: Plan,
    *,
    sources: Mapping[str, KernelSource] = MappingProxyType({}),
    weight_scales: WeightScales = "max",
    learned_activations: bool = True,
) -> fx.GraphModule:
    """Return the network that trains, called as the captured one is.

    Layers become `QatLayer` modules under the same name, which hold what trains. Every tensor of the plan has one
    `ActivationQuantizer`, whoever reads it; what several operators read is rounded once. All other parameters of the
    network train in float.

    Args:
        graph: from `capture`; it is not changed, and shares no tensor with what is returned but those of `sources`.
        plan: for this network: where it is rounded, and the grids to begin with.
        sources: layer name -> where its kernel comes from; a `PlainKernel` of the layer for the others.
        weight_scales: "max" (of the kernel, at each step), "learned" (LSQ) or "fixed".
        learned_activations: learn the scales of activations (LSQ), from those of the plan on. That of an input of the
            network stays: its range is known, and its gradient alone would need the first layer's backward pass to its
            input, a 25th of a step for RepVGG.

    Raises:
        InputError: a source for a layer that is not rounded.
    """
    if unknown := sorted(set(sources) - set(plan.layout.layers)):
        raise InputError(
            f"kernels were given for {', '.join(unknown)}; rounded layers are {', '.join(plan.layout.layers)}"
        )
    inputs = {node.name for node in graph.graph.nodes if node.op == "placeholder"}
    quantizers = {
        name: ActivationQuantizer(plan.grids[name], learned_activations and inputs.isdisjoint(tensor.sources))
        for name, tensor in plan.layout.tensors.items()
    }
    layers = {
        name: _training_layer(
            graph.get_submodule(name), name, plan, sources.get(name), quantizers[tensor], weight_scales
        )
        for name, tensor in plan.layout.layers.items()
    }
    network = copy_graph(graph, {id(graph.get_submodule(name)): layer for name, layer in layers.items()})
    _round_operands(network, plan, quantizers)
    return relu_in_place(network.to(device_of(graph)))  # scales come from ranges, which are numbers


@torch.no_grad()
def trained_integers(network: fx.GraphModule, graph: fx.GraphModule, plan: Plan) -> Rounded:
    """Return the network whose integers are those that training saw last.

    Args:
        network: from `make_trainable`, trained. It is left in evaluation mode.
        graph: what it was made from.
        plan: what it was made with.
    """
    network.eval()
    layers = qat_layers(network)
    grids = {name: quantizer.grid() for name, quantizer in activation_quantizers(network).items()}
    weight_grids = {name: layer.weight_grid() for name, layer in layers.items()}
    rounded = trained_graph(network, graph)
    for name, grid in weight_grids.items():
        weight = rounded.get_parameter(f"{name}.weight")
        weight.copy_(dequantize(to_integers(weight, grid), grid))
    return Rounded(rounded, replace(plan, grids=grids, weight_grids=weight_grids))


@torch.no_grad()
def trained_graph(network: fx.GraphModule, graph: fx.GraphModule) -> fx.GraphModule:
    """Return the float network as it is after training, its kernels before rounding, on the device of training.

    The kernels drift inside their rounding cells: without rounding they are no good network.

    Args:
        network: from `make_trainable`, trained.
        graph: what it was made from; it is not changed.
    """
    trained = on_device(copy_graph(graph), device_of(network))
    parameters: dict[str, Tensor] = dict(network.named_parameters())
    for name, layer in qat_layers(network).items():
        kernel, bias = layer.kernel_and_bias()
        parameters |= {f"{name}.weight": kernel} | ({} if bias is None else {f"{name}.bias": bias})
    for name, parameter in trained.named_parameters():
        parameter.copy_(parameters[name])
    return trained.eval()


def qat_layers(network: fx.GraphModule) -> dict[str, QatLayer]:
    """Return the layers of a network in training that are rounded, by name, in the order of computation."""
    called = _called_modules(network)
    return {name: module for name, module in called.items() if isinstance(module, QatLayer)}


def activation_quantizers(network: fx.GraphModule) -> dict[str, ActivationQuantizer]:
    """Return what rounds the activations of a network in training, by tensor, in the order of computation."""
    called = _called_modules(network)
    return {
        name.rpartition(".")[2]: module for name, module in called.items() if isinstance(module, ActivationQuantizer)
    }


def _called_modules(network: fx.GraphModule) -> dict[str, nn.Module]:
    names = (str(node.target) for node in network.graph.nodes if node.op == "call_module")
    return {name: network.get_submodule(name) for name in names}


def _training_layer(
    layer: nn.Module,
    name: str,
    plan: Plan,
    source: KernelSource | None,
    input: ActivationQuantizer,
    weight_scales: WeightScales,
) -> QatLayer:
    source = source or PlainKernel(layer)
    kernel, bias = source()
    scheme = weight_scheme(layer, plan.weight_scheme(name))
    grid = plan.weight_grids.get(name) or weight_grid(kernel, bias, plan.input_scale(name), scheme)
    return QatLayer(layer, source, input, WeightQuantizer(scheme, weight_scales, grid))


def _round_operands(network: fx.GraphModule, plan: Plan, quantizers: Mapping[str, ActivationQuantizer]) -> None:
    """Put the quantizers, in place, between the nodes of a network and those who read them on grids."""
    container = free_name(network, _ROUNDING)
    for name, quantizer in quantizers.items():
        network.add_submodule(f"{container}.{name}", quantizer)
    nodes = {node.name: node for node in network.graph.nodes}
    reads = {nodes[reader]: [nodes[operand] for operand in read] for reader, read in plan.layout.roundings.items()}
    calls = {str(node.target): node for node in nodes.values() if node.op == "call_module"}
    reads |= {calls[name]: list(operands(calls[name])) for name in plan.layout.layers}
    rounded: dict[fx.Node, fx.Node] = {}
    for reader, read in reads.items():
        for operand in read:
            if operand not in rounded:
                tensor = plan.layout.tensor_of(operand.name)
                with network.graph.inserting_after(operand):
                    rounded[operand] = network.graph.call_module(f"{container}.{tensor.name}", (operand,))
                rounded[operand].meta = {"val": operand.meta["val"]}
            reader.replace_input_with(operand, rounded[operand])
    network.graph.lint()
    network.recompile()
