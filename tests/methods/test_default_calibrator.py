import pytest
import torch
from torch import nn

import repquant as rq
from repquant.methods.default_calibrator import default_calibrator
from repquant.methods.search import methods
from repquant.quantize import captured
from repquant.targets.target import resolve_target


class Gated(nn.Module):
    """A convolution times a gate: of the value itself, which is a SiLU, or of its mean, which is not."""

    def __init__(self, *, of_itself):
        super().__init__()
        self.layer, self.of_itself = nn.Conv2d(3, 3, 1), of_itself

    def forward(self, x):
        y = self.layer(x)
        return y * torch.sigmoid(y if self.of_itself else y.mean((2, 3), keepdim=True))


def classifier(activation):
    return nn.Sequential(nn.Conv2d(3, 8, 3), activation, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (classifier(nn.SiLU(inplace=True)), "loss-aware"),
        (nn.Sequential(Gated(of_itself=True), classifier(nn.ReLU())), "loss-aware"),
        (nn.Sequential(Gated(of_itself=False), classifier(nn.ReLU())), "mse"),
        (classifier(nn.GELU("tanh")), "loss-aware"),
        (classifier(nn.Sigmoid()), "mse"),
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 5, 1)), "mse"),  # a map of outputs
    ],
)
def test_classifiers_with_silu_or_gelu_have_ranges_of_their_own(network, expected):
    graph = captured(network.eval(), [torch.randn(2, 3, 8, 8)])
    assert default_calibrator(graph, resolve_target("tensorrt")) == expected


def test_what_may_have_no_derivative_and_what_names_classes_keep_ranges_of_their_own():
    class Odd(nn.Module):
        def __init__(self, last):
            super().__init__()
            self.network, self.last = classifier(nn.SiLU()), last

        def forward(self, x):
            return self.last(self.network(x))

    pictures = [torch.randn(2, 3, 8, 8)]
    for last in (lambda y: y.cumsum(1), lambda y: y.argmax(1)):
        assert default_calibrator(captured(Odd(last).eval(), pictures), resolve_target("tensorrt")) == "mse"


def test_so_have_classifiers_with_few_bits():
    few = resolve_target("openvino", activation_bits=4)
    pictures = [torch.randn(2, 3, 8, 8)]
    assert default_calibrator(captured(classifier(nn.ReLU()).eval(), pictures), few) == "loss-aware"
    assert default_calibrator(captured(nn.Conv2d(3, 4, 1).eval(), pictures), few) == "mse"  # a map of outputs


@pytest.mark.parametrize(("activation", "expected"), [(nn.SiLU, "loss-aware"), (nn.ReLU, "mse")])
def test_quantize_takes_them_where_nobody_names_a_calibrator(activation, expected):
    torch.manual_seed(1)
    network = classifier(activation()).eval()
    images = [torch.randn(32, 3, 8, 8).pow(5)]
    ranges = {
        name: rq.quantize(network, images, target="tensorrt", calibrator=name).plan.grids
        for name in ("mse", "loss-aware")
    }
    assert ranges["mse"] != ranges["loss-aware"]
    assert rq.quantize(network, images, target="tensorrt").plan.grids == ranges[expected]


def test_a_search_begins_with_the_default():
    for default in ("mse", "loss-aware"):
        first, *others = methods(True, default)
        assert first.calibrator == default
        assert {"mse", "loss-aware", "percentile", "entropy"} == {first.calibrator, *(one.calibrator for one in others)}
        assert len({candidate.name for candidate in (first, *others)}) == len(others) + 1
