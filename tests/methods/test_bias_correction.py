from functools import partial

import pytest
import torch
from torch import nn

from repquant.graph.capture import capture
from repquant.graph.operators import layer_nodes
from repquant.graph.run import run
from repquant.methods.bias_correction import correct_biases
from repquant.simulation.network import simulate
from repquant.targets.target import resolve_target


def channel_means(graph, batch, names):
    """Means of the outputs of layers (C,), by name."""
    nodes = {str(node.target): node.name for node in graph.graph.nodes if node.op == "call_module"}
    values = {}
    with torch.inference_mode():
        run(graph, batch, {nodes[name]: partial(values.__setitem__, name) for name in names})
    means = {}
    for name, y in values.items():
        is_linear = isinstance(graph.get_submodule(name), nn.Linear)
        means[name] = y.flatten(0, -2).mean(0) if is_linear else y.transpose(0, 1).flatten(1).mean(1)
    return means


def test_a_single_layer_gets_its_float_mean(plan):
    """Inputs of mean 1/2 times a weight that rounds to zero: the whole mean is lost, and comes back."""
    layer = nn.Sequential(nn.Conv2d(2, 1, 1))
    layer[0].weight.data = torch.tensor([1.27, 0.004]).reshape(1, 2, 1, 1)
    layer[0].bias.data.zero_()
    images = torch.rand(4, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    graph = capture(layer, images)
    whole = plan(graph, [images], resolve_target("onnxruntime"))
    corrected = correct_biases(graph, simulate(graph, whole, ends=False), [images])
    lost = 0.004 * images[:, 1].mean()
    assert corrected.get_submodule("0").bias.item() == pytest.approx(lost.item(), rel=0.2)
    with torch.no_grad():
        assert (simulate(corrected, whole)(images) - graph(images)).mean().abs() < 1e-4


def test_every_layer_gets_its_float_mean(mixed, images, plan):
    """Convolutions of all kinds, a transposed one, and linear layers of tokens."""
    whole = plan(mixed, [images], resolve_target("openvino", weight_bits=3))
    nearest = simulate(mixed, whole, ends=False)
    corrected = simulate(correct_biases(mixed, nearest, [images]), whole, ends=False)
    names = [name for name in layer_nodes(mixed) if name != "stem" and not name.startswith("gate")]
    expected, before, after = (channel_means(graph, images, names) for graph in (mixed, nearest, corrected))
    for name in names:
        lost, left = (before[name] - expected[name]).abs().mean(), (after[name] - expected[name]).abs().mean()
        assert left <= 0.3 * lost + 1e-3, name


def test_batches_count_by_their_images(mixed, images, plan):
    whole = plan(mixed, [images], resolve_target("openvino", weight_bits=4))
    counted = []
    one, several = (
        correct_biases(mixed, simulate(mixed, whole, ends=False), batches, counted.append)
        for batches in ([images[:4], images[:4]], [images[:4]])
    )
    assert counted == [4, 4, 4]
    for name, value in several.state_dict().items():
        assert torch.allclose(one.state_dict()[name], value, rtol=1e-5, atol=1e-7), name


def test_nothing_given_is_changed_and_layers_without_bias_stay(mixed, images, plan):
    before = {name: value.clone() for name, value in mixed.state_dict().items()}
    simulated = simulate(mixed, plan(mixed, [images], resolve_target("tensorrt")), ends=False)
    corrected = correct_biases(mixed, simulated, [images])
    assert all(torch.equal(before[name], value) for name, value in mixed.state_dict().items())
    assert corrected.get_submodule("stem").bias is None
    assert torch.equal(corrected.get_submodule("stem").weight, before["stem.weight"])


def test_without_images_biases_stay(mixed, images, plan):
    simulated = simulate(mixed, plan(mixed, [images], resolve_target("tensorrt")), ends=False)
    corrected = correct_biases(mixed, simulated, [])
    assert all(torch.equal(corrected.state_dict()[name], value) for name, value in mixed.state_dict().items())
