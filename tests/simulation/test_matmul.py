import torch
from torch import nn

from repquant.graph.capture import capture
from repquant.graph.layout import find_layout
from repquant.graph.plan import make_plan
from repquant.graph.run import run
from repquant.simulation.network import simulate
from repquant.targets.target import resolve_target


class Products(nn.Module):
    """A product that is scaled, and read by another product."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        x = self.layer(x)
        return (x @ x / 4) @ x @ x


def test_products_of_products_are_rounded():
    x = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0))
    graph, target = capture(Products().eval(), x), resolve_target("onnxruntime")
    layout = find_layout(graph, target)
    simulated = simulate(graph, make_plan(layout, dict.fromkeys(layout.tensors, (-4.0, 4.0)), target))
    torch.testing.assert_close(run(simulated, x)[0], run(graph, x)[0], atol=0.2, rtol=0)
