import pytest
import torch
from torch import nn

from repquant.graph.capture import capture
from repquant.graph.grouping import grouped
from repquant.methods.output_gains import output_gains
from repquant.numerics.equalization import chain_gains


def test_gains_of_a_linear_chain_are_those_of_the_closed_form():
    # The last layer joins no channels: where several paths meet again, the closed form leaves out their products.
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3, groups=2), nn.Conv2d(4, 4, 1, groups=4)
    ).requires_grad_(False)
    images = torch.randn(4, 3, 32, 32)
    graph = capture(model, images[:2])
    nodes = [node.name for node in graph.graph.nodes if node.op == "call_module"]
    measured = output_gains(
        graph, [images], {name: (1, layer.out_channels, 1, 1) for name, layer in zip(nodes, model, strict=True)}
    )
    energies = [grouped(layer, layer.weight).double().square().sum(3) for layer in model]
    exact = chain_gains(energies, [torch.ones(6).double(), torch.ones(4).double()])
    # Measured are sums over the places, in units of the outputs' power; the closed form is for one place and output.
    unit = 28 * 28 * float((1 / model(images).square().mean((1, 2, 3))).mean())
    for name, gain in zip(nodes, exact, strict=True):
        torch.testing.assert_close(measured[name].flatten() / unit, gain, rtol=0.05, atol=0)


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
    gains = output_gains(graph, [images], {"first": (1, 2)}, vectors=1000)["first"].flatten()
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
