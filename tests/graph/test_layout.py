import pytest
import torch
from torch import nn

from repquant.graph.capture import capture
from repquant.graph.layout import find_layout
from repquant.targets.target import resolve_target


class Sine(nn.Module):
    """An operator that the table does not hold, between two convolutions."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return self.second(torch.sin(self.first(x).flatten(2)).reshape(-1, 4, 6, 6))


@pytest.fixture(scope="module")
def graph():
    return capture(Sine().eval(), torch.randn(2, 3, 6, 6))


@pytest.mark.parametrize(("target", "rounded"), [("onnxruntime", True), ("openvino", False), ("tensorrt", False)])
def test_what_a_convolution_gives_to_an_unknown_operator_is_rounded_where_it_is_float_else(graph, target, rounded):
    layout = find_layout(graph, resolve_target(target))
    assert set(layout.layers) == {"first", "second"}
    assert layout.floats == {"sin": "aten.sin.default is not among the operators that are understood"}
    assert ("sin" in layout.roundings) is rounded


def test_an_operator_kept_in_float_reads_floats(graph):
    layout = find_layout(graph, resolve_target("onnxruntime"), ["first"])
    assert layout.floats["first"] == "kept in float as asked"
    assert "sin" not in layout.roundings


class ClippedAndFlattened(nn.Module):
    """One convolution that a ReLU and a view read."""

    def __init__(self):
        super().__init__()
        self.first, self.clipped, self.flattened = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv1d(4, 4, 1)

    def forward(self, x):
        y = self.first(x)
        return self.clipped(torch.relu(y)), self.flattened(y.flatten(2))


def test_a_view_reads_the_integers_that_others_read_of_its_layer():
    layout = find_layout(capture(ClippedAndFlattened().eval(), torch.randn(2, 3, 6, 6)), resolve_target("onnxruntime"))
    (view,) = (node for node in layout.roundings if node in layout.tensor_of("first").members)
    assert layout.roundings[view] == ("first",)


class BestPlaces(nn.Module):
    """Scores every place and computes on with the two best ones, as detectors with queries do."""

    def __init__(self):
        super().__init__()
        self.stem, self.score, self.refine, self.head = (
            nn.Conv2d(3, 8, 1), nn.Conv2d(8, 1, 1), nn.Linear(8, 8), nn.Linear(8, 2)
        )  # fmt: skip

    def forward(self, x):
        features = torch.relu(self.stem(x))
        scores = self.score(features).flatten(1)
        places = scores.topk(2).indices
        best = features.flatten(2).gather(2, places[:, None].expand(-1, 8, -1)).transpose(1, 2)
        return {"scores": scores, "boxes": self.head(torch.relu(self.refine(best)))}


def test_what_is_behind_a_selection_stays_in_float_and_says_so():
    graph = capture(BestPlaces().eval(), torch.randn(2, 3, 6, 6))
    layout = find_layout(graph, resolve_target("onnxruntime"), ["score"])
    assert set(layout.layers) == {"stem"}
    assert layout.floats["score"] == "kept in float as asked"
    assert layout.floats["refine"] == layout.floats["head"] == "behind the selection topk"
    assert not any(name.startswith(("refine", "head")) for name in layout.tensors)
