"""What is joined and parted again is neither, where parts are whole."""

import operator

import pytest
import torch
from torch import nn

from repquant.graph.capture import capture
from repquant.graph.layout import find_layout
from repquant.targets.target import resolve_target

aten = torch.ops.aten
PARTING = {aten.split_with_sizes.default, aten.split.Tensor, aten.chunk.default, aten.slice.Tensor, operator.getitem}


class Head(nn.Module):
    """Two levels that join boxes (4) and scores (6), then themselves, and are parted by a function."""

    def __init__(self, part):
        super().__init__()
        self.boxes, self.scores = (nn.ModuleList(nn.Conv2d(3, n, 1) for _ in range(2)) for n in (4, 6))
        self.part = part

    def forward(self, x):
        levels = [x, x[:, :, ::2, ::2]]
        joined = [torch.cat([b(y), s(y)], 1) for b, s, y in zip(self.boxes, self.scores, levels, strict=True)]
        flat = [y.view(y.shape[0], 10, -1) for y in joined]
        boxes, scores = self.part(torch.cat(flat, 2))
        return boxes, scores.sigmoid()


WHOLE = {
    "split": lambda x: x.split((4, 6), 1),
    "slices": lambda x: (x[:, :4], x[:, -6:]),
    "narrow slices": lambda x: (x[:, :4], x[:, 4:100]),
}


@pytest.mark.parametrize("name", WHOLE)
def test_boxes_and_scores_have_grids_of_their_own(name):
    torch.manual_seed(0)
    module, x = Head(WHOLE[name]).eval(), torch.randn(2, 3, 8, 8)
    graph = capture(module, x)
    for expected, actual in zip(module(x), graph(x), strict=True):
        torch.testing.assert_close(actual, expected)
    assert not [node for node in graph.graph.nodes if node.target in PARTING - {aten.slice.Tensor}]
    assert graph(torch.randn(5, 3, 8, 8))[1].shape == (5, 6, 80)
    layout = find_layout(graph, resolve_target("onnxruntime", fast_int8_dot=True))
    assert {tensor.sources for tensor in layout.tensors.values()} >= {("scores_0", "scores_1")}


CUT = {
    "elsewhere": lambda x: x.split((5, 5), 1),
    "with a step": lambda x: (x[:, ::2], x[:, 1::2]),
    "along another dimension": lambda x: (x[:, :, :40], x[:, :, 40:]),
}


@pytest.mark.parametrize("name", CUT)
def test_other_parts_stay(name):
    torch.manual_seed(0)
    module, x = Head(CUT[name]).eval(), torch.randn(2, 3, 8, 8)
    graph = capture(module, x)
    for expected, actual in zip(module(x), graph(x), strict=True):
        torch.testing.assert_close(actual, expected)
    assert [node for node in graph.graph.nodes if node.target in PARTING]


def test_a_run_of_whole_parts_is_joined_anew():
    class Three(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Conv2d(3, 2, 1) for _ in range(3))

        def forward(self, x):
            joined = torch.cat([layer(x) for layer in self.layers], 1)
            return joined[:, 2:], joined.relu()

    module, x = Three().eval(), torch.randn(2, 3, 4, 4)
    graph = capture(module, x)
    torch.testing.assert_close(graph(x), module(x))
    joins = [node for node in graph.graph.nodes if node.target is aten.cat.default]
    assert sorted(len(node.args[0]) for node in joins) == [2, 3]


EMPTY = {
    "at the end": lambda x: x.split((4, 6, 0), 1),
    "in front": lambda x: x.split((0, 4, 6), 1),
    "slices": lambda x: (x[:, :4], x[:, 4:], x[:, 4:4], x[:, 6:2], x[:, 100:], x[:, -100:-50]),
}


@pytest.mark.parametrize("name", EMPTY)
def test_empty_parts_stay_and_the_others_are_found(name):
    class Parted(nn.Module):
        def __init__(self):
            super().__init__()
            self.boxes, self.scores = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 1)

        def forward(self, x):
            return [part.relu() for part in EMPTY[name](torch.cat([self.boxes(x), self.scores(x)], 1))]

    module, x = Parted().eval(), torch.randn(2, 3, 4, 4)
    graph = capture(module, x)
    for expected, actual in zip(module(x), graph(x), strict=True):
        torch.testing.assert_close(actual, expected)
    parts = [node for node in graph.graph.nodes if node.target in (operator.getitem, aten.slice.Tensor)]
    assert all(0 in node.meta["val"].shape for node in parts)


def test_an_empty_row_may_be_among_what_is_joined():
    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x):
            return torch.cat([self.conv(x), x.new_zeros(0), self.conv(x)], 1)[:, 4:]

    module, x = Joined().eval(), torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(capture(module, x)(x), module(x))
