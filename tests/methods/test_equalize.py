"""Equalization of captured networks: equal outputs and less noise."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from repquant.choices import EQUALIZATIONS
from repquant.errors import InputError
from repquant.graph.capture import capture
from repquant.graph.channels import apply_scales, find_channels
from repquant.graph.interface import captured_of
from repquant.graph.layout import find_layout
from repquant.graph.plan import make_plan
from repquant.methods.calibrate import activation_ranges, collect_histograms
from repquant.methods.equalize import equalize, find_scales
from repquant.simulation.network import simulate
from repquant.targets.target import resolve_target


class Branched(nn.Module):
    """A residual, a gate, groups, a transposed convolution, a concatenation and a linear head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.down, self.up = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.wider = nn.ConvTranspose2d(8, 8, 2, stride=2, groups=4)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = x + self.grouped(x)
        x = x * torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))
        y = F.max_pool2d(F.relu(self.wider(x)), 2)
        return self.head(F.leaky_relu(self.depthwise(torch.cat([x, y], 1))).mean((2, 3)))


class Chain(nn.Sequential):
    """Every layer reads the one before it; one has the shape of an identity, and groups."""

    def __init__(self):
        torch.manual_seed(0)
        super().__init__(
            nn.Conv2d(3, 8, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, groups=2),
            nn.ReLU(),
            nn.Conv2d(8, 6, 1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(6, 5),
        )


@pytest.fixture(scope="module")
def images():
    return torch.randn(12, 3, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def branched():
    return capture(Branched(), torch.randn(2, 3, 12, 12))


@pytest.fixture(scope="module")
def chain():
    return capture(Chain(), torch.randn(2, 3, 12, 12))


def outputs(graph, images):
    with torch.no_grad():
        return graph(images)


def error(graph, images, target, expected):
    layout = find_layout(graph, target)
    ranges = activation_ranges("max", collect_histograms(graph, layout, [images]), target)
    return float((outputs(simulate(graph, make_plan(layout, ranges, target)), images) - expected).square().mean())


@pytest.mark.parametrize("method", EQUALIZATIONS)
@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_the_network_computes_the_same(branched, images, method, target):
    labelled = [(part, torch.zeros(len(part), dtype=torch.long)) for part in images.split([8, 4])]
    seen = []
    scaled = equalize(branched, method, labelled, resolve_target(target), on_batch=seen.append)
    assert torch.allclose(outputs(scaled, images), outputs(branched, images), rtol=1e-4, atol=1e-5)
    assert not torch.equal(scaled.stem.weight, branched.stem.weight)
    assert captured_of(scaled).dynamic_batch
    assert seen == ([] if method == "ranges" else [8, 4])


@pytest.mark.parametrize("method", EQUALIZATIONS)
def test_it_lowers_the_error_of_unbalanced_channels(branched, images, method):
    target = resolve_target("tensorrt", per_tensor_weights=True)
    channels = find_channels(branched)
    generator = torch.Generator().manual_seed(2)
    unbalanced = apply_scales(branched, channels, torch.exp(2 * torch.randn(channels.count, generator=generator)))
    expected = outputs(branched, images)
    scaled = equalize(unbalanced, method, [images], target)
    assert error(scaled, images, target, expected) < 0.1 * error(unbalanced, images, target, expected)


@pytest.mark.parametrize("shortcut", ["inside", "apart", "residual"])
def test_a_chain_needs_no_pass_backward(chain, images, shortcut, monkeypatch):
    """Its gains have a closed form, and the scales lower the error."""
    monkeypatch.setattr("repquant.methods.equalize.output_gains", None)
    target = resolve_target("onnxruntime", weight_bits=6)
    scaled = equalize(chain, "noise", images.split(8), target, shortcut=shortcut)
    expected = outputs(chain, images)
    assert torch.allclose(outputs(scaled, images), expected, rtol=1e-4, atol=1e-5)
    if shortcut == "inside":
        assert error(scaled, images, target, expected) < error(chain, images, target, expected)


def test_ranges_of_two_layers_meet_in_the_middle(images):
    """The rule by hand: a row of largest magnitude 4 and a column of 1 get the factor 1/2, both are 2 then."""
    graph = capture(nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1)), images)
    first, last = graph.get_submodule("0").weight.data, graph.get_submodule("2").weight.data
    first.fill_(0.5)[0, 1] = -4.0
    last.fill_(0.5)[1, 0] = 1.0
    channels, scales = find_scales(graph, "ranges", [], resolve_target("tensorrt"))
    assert scales[channels.layers["0"].outputs].tolist() == pytest.approx([0.5, 1.0])


def test_the_noise_of_layers_in_float_does_not_count(branched, images):
    target = resolve_target("tensorrt")
    everything = find_scales(branched, "noise", [images], target)[1]
    layout = find_layout(branched, target, ["head"])
    assert not torch.equal(find_scales(branched, "noise", [images], target, layout)[1], everything)


def test_scales_are_the_same_in_every_run(branched, images):
    first, second = (find_scales(branched, "noise", [images], resolve_target("tensorrt"))[1] for _ in range(2))
    assert torch.equal(first, second)


def test_what_cannot_be_scaled_is_left_alone(images):
    graph = capture(nn.Sequential(nn.Conv2d(3, 4, 1), nn.SiLU(), nn.Conv2d(4, 2, 1)), images[:2])
    scaled = equalize(graph, "noise", [images], resolve_target("tensorrt"))
    assert scaled is not graph
    assert torch.equal(outputs(scaled, images), outputs(graph, images))


def test_a_batch_that_the_network_fixes(images):
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first, self.last = nn.Conv2d(3, 4, 1), nn.Linear(4, 2)

        def forward(self, x):
            return self.last(F.relu(self.first(x)).mean((2, 3)).view(12, 4))

    graph = capture(Fixed(), images)
    scaled = equalize(graph, "noise", [images, images], resolve_target("tensorrt"))
    assert torch.allclose(outputs(scaled, images), outputs(graph, images), atol=1e-5)
    assert not torch.equal(scaled.first.weight, graph.first.weight)


def test_a_dead_channel_stays_bounded(images):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1))
    with torch.no_grad():
        model[0].weight[1] = 0.0
        model[0].bias[1] = -1.0
        model[2].weight[:, 2] = 0.0
    graph = capture(model, images[:2])
    for method in EQUALIZATIONS:
        scaled = equalize(graph, method, [images], resolve_target("tensorrt"))
        assert all(parameter.isfinite().all() for parameter in scaled.parameters())
        assert torch.allclose(outputs(scaled, images), outputs(graph, images), atol=1e-5)


def test_no_images(branched):
    with pytest.raises(InputError, match="no calibration images"):
        equalize(branched, "noise", [], resolve_target("tensorrt"))
