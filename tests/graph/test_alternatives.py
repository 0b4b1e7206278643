import torch
from torch import nn

from repquant.graph.alternatives import run_alternatives
from repquant.graph.capture import capture


class Lines(nn.Module):
    def forward(self, x):
        return torch.neg(torch.mul(torch.add(x, 1.0), 2.0))


def test_alternatives_take_their_nodes_place_and_what_is_before_them_runs_once():
    graph = capture(Lines(), torch.zeros(2, 3))
    first, double, last = (node.name for node in graph.graph.nodes if node.op == "call_function")
    calls, outputs = [], {}

    def add(x, y):
        calls.append("first")
        return x + y

    alternatives = {
        "double": {double: lambda x, _: x * 0.0},
        "last": {last: lambda x: 3 * x},
        "both": {last: lambda x: 3 * x, double: lambda x, _: 10 * x},
        "all": {first: lambda x, _: x, last: lambda x: x},
    }
    (whole,) = run_alternatives(
        graph, torch.tensor([[1.0], [5.0]]).expand(2, 3), {first: add}, alternatives, outputs.__setitem__
    )
    assert whole[:, 0].tolist() == [-4, -12]
    assert {name: found[:, 0].tolist() for name, (found,) in outputs.items()} == {
        "double": [0, 0],
        "last": [12, 36],
        "both": [60, 180],
        "all": [2, 10],
    }
    assert calls == ["first"]
