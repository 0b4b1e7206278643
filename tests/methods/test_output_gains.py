import pytest
import torch
from torch import nn

from repquant.graph.capture import capture
from repquant.methods.output_gains import output_gains
from repquant.numerics.equalization import chain_gains, gain_through


def test_gains_of_a_linear_chain_are_those_of_the_closed_form():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3, stride=2, groups=2), nn.Conv2d(4, 5, 1))
    images = torch.randn(64, 3, 11, 11)
    graph = capture(model, images[:2])
    nodes = {str(node.target): node.name for node in graph.graph.nodes if node.op == "call_module"}
    shapes = {nodes["0"]: (1, 6, 1, 1), nodes["1"]: (1, 4, 1, 1), nodes["2"]: (1, 5, 1, 1)}
    measured = output_gains(graph, [images], shapes, vectors=8)
    energies = []
    for layer, groups in zip(model, (1, 2, 1), strict=True):
        weight = layer.weight.detach().double()
        energies.append(weight.view(groups, len(weight) // groups, weight.shape[1], -1).square().sum(3))
    exact = chain_gains(energies, [torch.ones(6).double(), torch.ones(4).double()])
    # The closed form knows neither the number of output places nor the output's power, nor that a stride skips places.
    power = [float(model(image).square().mean()) for image in images.split(1)]
    unit = 16 * sum(1 / value for value in power) / len(power)
    for name, gain in zip(nodes.values(), exact, strict=True):
        torch.testing.assert_close(measured[name].flatten() / unit, gain.detach(), rtol=0.1, atol=0)
    torch.testing.assert_close(gain_through(energies[2], exact[2]), exact[1])


class TwoOutputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.first.weight.copy_(torch.eye(2))

    def forward(self, x):
        y = self.first(x)
        return {"loud": 100 * y[:, 0], "quiet": y[:, 1], "index": y.argmax(1)}


def test_outputs_count_in_units_of_their_power_and_integers_do_not():
    graph = capture(TwoOutputs(), torch.ones(2, 2))
    images = torch.tensor([[1.0, 0.5], [1.0, 0.5]])
    gains = output_gains(graph, [images], {"first": (1, 2)}, vectors=2000)["first"].flatten()
    assert gains.tolist() == pytest.approx([1.0, 4.0], rel=0.1)


def test_a_node_without_a_way_to_the_outputs_has_no_gain():
    class Detached(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(2, 2)

        def forward(self, x):
            return self.first(x).argmax(1)

    graph = capture(Detached(), torch.ones(2, 2))
    assert output_gains(graph, [torch.ones(2, 2)], {"first": (1, 2)})["first"].tolist() == [[0.0, 0.0]]
