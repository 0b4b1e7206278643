"""What is made functional without a second trace is what that trace gives; what can't be goes to the trace."""

import warnings
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.export import Dim

from repquant.graph.functional import functional_graph
from repquant.graph.noops import remove_noops, remove_unused
from third_party import randomized

X = torch.randn(2, 4, 6, 6)


class Written(nn.Module):
    """Operators in place on tensors that nothing else reads, a normalization, dropout, and views of known shape."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.drop = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout()

    def forward(self, x):
        y = F.hardswish(self.bn(self.conv(x)), inplace=True)
        y += x
        y = F.relu(y, inplace=True)
        y = F.hardtanh(y, 0, 6, inplace=True) + self.drop(x).transpose(2, 3)
        return y.flatten(1).unflatten(1, (4, 36)).view(-1, 4, 36)


class Graph(nn.Module):
    def __init__(self, forward) -> None:
        super().__init__()
        self.forward = forward


def composite(x):
    return F.relu6(torch.exp(x), inplace=True)


def read_by_a_view(x):
    y = torch.exp(x)
    rows = y.transpose(2, 3)
    return F.relu(y, inplace=True) + rows


def through_dropout(x):
    y = torch.exp(x)
    return F.relu(F.dropout(y, training=False), inplace=True) + y


def on_a_view(x):
    y = torch.exp(x)
    y[:, 1:].mul_(2)
    return y


def on_the_input(x):
    return x.mul_(2)


def computed_size(x):
    return x.flatten(0, 1)


def size_of_the_batch(x):
    return x.reshape(len(x), -1)


def random(x):
    return F.dropout(x, training=True)


def program_of(module):
    with torch.no_grad():
        return torch.export.export(module.eval(), (X.clone(),), dynamic_shapes=({0: Dim.AUTO},), strict=False)


def operators(graph):
    remove_noops(graph)
    remove_unused(graph)
    return Counter(str(node.target) for node in graph.nodes if node.op == "call_function")


def test_the_operators_are_those_of_another_trace_and_compute_the_same():
    module = randomized(Written())
    program = program_of(module)
    exported = program.module(check_guards=False)
    graph = functional_graph(exported.graph)
    assert graph is not None
    with torch.no_grad():
        x = torch.randn(5, 4, 6, 6)
        torch.testing.assert_close(torch.fx.GraphModule(exported, graph)(x), module(x), rtol=0, atol=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch 2.13 traces by a class that it has deprecated itself
        traced = program.run_decompositions({}).module(check_guards=False).graph
    assert operators(graph) == operators(traced)
    assert not any(node.target._schema.is_mutable for node in graph.nodes if hasattr(node.target, "_schema"))


@pytest.mark.parametrize(
    "forward",
    [
        composite,
        read_by_a_view,
        through_dropout,
        on_a_view,
        on_the_input,
        computed_size,
        size_of_the_batch,
        random,
    ],
)
def test_what_only_a_trace_makes_functional_is_left_to_it(forward):
    assert functional_graph(program_of(Graph(forward)).module(check_guards=False).graph) is None
