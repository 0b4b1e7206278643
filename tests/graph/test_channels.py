"""Which channels may be scaled: what is tied, passed on and pinned, and that scaling changes no output."""

import random

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils import _pytree as pytree

from repquant.graph.capture import capture
from repquant.graph.channels import apply_scales, find_channels

PINNED = [-1] * 4


class Between(nn.Module):
    """Two layers with something between them."""

    def __init__(self, between, inputs=4, after=None):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)
        self.middle = nn.Conv2d(4, 4, 1)
        self.side = nn.Conv2d(4, 4, 1)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.last = after or nn.Conv2d(inputs, 2, 1)
        self.between = between

    def forward(self, x):
        return self.last(self.between(self, self.first(x)))


def layers_of(between, inputs=4, after=None):
    torch.manual_seed(0)
    graph = capture(Between(between, inputs, after), torch.randn(2, 3, 4, 4))
    return find_channels(graph).layers


def outputs(layers, name="first"):
    return layers[name].outputs.tolist()


def inputs(layers, name="last"):
    return layers[name].inputs.tolist()


@pytest.mark.parametrize(
    "between",
    [
        lambda _, x: F.relu(x),
        lambda _, x: F.leaky_relu(x, 0.2) * 3 / 2,
        lambda _, x: F.max_pool2d(x, 2),
        lambda _, x: F.avg_pool2d(x, 2),
        lambda _, x: F.interpolate(x, scale_factor=2, mode="bilinear"),
        lambda _, x: F.pad(x, (1, 1, 1, 1)),
        lambda _, x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
        lambda _, x: x.mean((2, 3), keepdim=True),
        lambda _, x: x[..., 1:].flip(-1),
    ],
)
def test_scales_pass_through_what_is_homogeneous(between):
    layers = layers_of(between)
    assert outputs(layers) == inputs(layers) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "between",
    [
        lambda _, x: F.silu(x),
        lambda _, x: F.relu6(x),
        lambda _, x: torch.softmax(x, 1),
        lambda _, x: x + 1,
        lambda _, x: x * x,
        lambda _, x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),
        lambda _, x: F.pad(x, (1, 1, 1, 1), value=1.0),
        lambda _, x: x.cumsum(2),  # unknown to the table
        lambda _, x: x.transpose(1, 2) @ x.transpose(1, 2),
    ],
)
def test_scales_are_pinned_by_what_is_not(between):
    layers = layers_of(between)
    assert outputs(layers) == inputs(layers) == PINNED


def test_the_input_and_the_outputs_of_the_network_are_pinned():
    layers = layers_of(lambda _, x: F.relu(x))
    assert inputs(layers, "first") == [-1] * 3
    assert outputs(layers, "last") == [-1] * 2


def test_an_addition_ties_its_summands():
    layers = layers_of(lambda net, x: F.relu(x) + net.middle(F.relu(x)))
    assert outputs(layers) == outputs(layers, "middle") == inputs(layers, "middle") == inputs(layers)
    assert len(set(inputs(layers))) == 4


def test_a_gate_passes_the_scales_of_the_other_factor():
    layers = layers_of(lambda net, x: x * torch.sigmoid(net.side(F.relu(net.middle(x)))))
    assert outputs(layers) == inputs(layers, "middle") == inputs(layers)
    assert outputs(layers, "middle") == inputs(layers, "side")
    assert -1 not in outputs(layers) + outputs(layers, "middle")
    assert outputs(layers, "side") == PINNED


def test_of_two_free_factors_one_stays_free():
    layers = layers_of(lambda net, x: x * net.middle(x.mean((2, 3), keepdim=True)))
    assert outputs(layers, "middle") == PINNED
    assert outputs(layers) == inputs(layers)
    assert -1 not in outputs(layers)


def test_a_concatenation_puts_channels_side_by_side():
    layers = layers_of(lambda net, x: torch.cat([net.middle(x), x], 1), inputs=8)
    assert inputs(layers) == outputs(layers, "middle") + outputs(layers)
    assert len(set(inputs(layers))) == 8


@pytest.mark.parametrize("part", [lambda x: x.chunk(2, 1)[1], lambda x: x[:, 2:], lambda x: x.split([1, 1, 2], 1)[2]])
def test_a_part_keeps_its_channels(part):
    layers = layers_of(lambda _, x: part(x) * 1.5, inputs=2)
    assert inputs(layers) == outputs(layers)[2:]


def test_channels_are_followed_through_a_shuffle_written_by_hand():
    layers = layers_of(lambda _, x: x.view(-1, 2, 2, 4, 4).transpose(1, 2).reshape(-1, 4, 4, 4))
    first = outputs(layers)
    assert inputs(layers) == [first[0], first[2], first[1], first[3]]


def test_a_flattened_map_repeats_each_channel():
    layers = layers_of(lambda _, x: F.relu(x).flatten(1), after=nn.Linear(64, 2))
    assert inputs(layers) == [channel for channel in outputs(layers) for _ in range(16)]


def test_channels_that_become_places_are_tied():
    layers = layers_of(lambda _, x: F.pixel_shuffle(x, 2), inputs=1)
    assert outputs(layers) == [0] * 4
    assert inputs(layers) == [0]


def test_a_mean_over_channels_ties_them():
    layers = layers_of(lambda _, x: x.mean(1, keepdim=True), inputs=1)
    assert outputs(layers) == [0] * 4


def test_channels_that_become_images_are_tied():
    layers = layers_of(lambda _, x: x.reshape(-1, 1, 4, 4).expand(-1, 4, -1, -1))
    assert len(set(outputs(layers))) == 1


def test_a_depthwise_convolution_absorbs_both_sides():
    layers = layers_of(lambda net, x: net.depthwise(x))
    assert not set(inputs(layers, "depthwise")) & set(outputs(layers, "depthwise"))
    assert len({*inputs(layers, "depthwise"), *outputs(layers, "depthwise")}) == 8


KINDS = (
    "residual",
    "difference",
    "cat",
    "split",
    "excite",
    "up",
    "shuffle",
    "product",
    "pinned",
    "places",
    "plain",
)


class RandomNetwork(nn.Module):
    """Layers and operators drawn at random; every map is (N, 8, 6, 6)."""

    def __init__(self, seed, steps=6):
        super().__init__()
        self.choices = random.Random(seed)
        self.seed, self.steps = seed, steps
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        for index in range(steps):
            groups = self.choices.choice([1, 2, 8])
            self.add_module(f"conv{index}", nn.Conv2d(8, 8, 3, padding=1, groups=groups, bias=bool(index % 2)))
            self.add_module(f"up{index}", nn.ConvTranspose2d(8, 8, 2, stride=2, groups=groups))
            self.add_module(f"down{index}", nn.Conv2d(8, 4, 1))
            self.add_module(f"gate{index}", nn.Conv2d(4, 8, 1))
        self.wide = nn.Conv2d(16, 8, 1)
        self.halves = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(8 * 9, 5)

    def step(self, kind, index, x, other):
        conv, up, down, gate = (getattr(self, f"{name}{index}") for name in ("conv", "up", "down", "gate"))
        if kind == "residual":
            return F.relu(conv(x)) + x
        if kind == "difference":
            return x - other
        if kind == "cat":
            return F.leaky_relu(torch.cat([x, other], 1)[:, 4:12])
        if kind == "split":
            left, right = conv(x).chunk(2, 1)
            return torch.cat([right, F.relu(left)], 1)
        if kind == "excite":
            return x * torch.sigmoid(gate(F.relu(down(x.mean((2, 3), keepdim=True)))))
        if kind == "up":
            return F.max_pool2d(F.relu(up(x)), 2)
        if kind == "shuffle":
            return conv(F.channel_shuffle(x, 2))
        if kind == "product":
            return conv(x) * other
        if kind == "pinned":
            return F.silu(conv(x))
        if kind == "places":
            return F.pad(F.pixel_unshuffle(F.pixel_shuffle(conv(x), 2), 2), (1, 0, 0, 1))[..., :-1, 1:]
        return F.relu(conv(x))

    def forward(self, x):
        choices = random.Random(self.seed)
        maps = [self.stem(x)]
        for index in range(self.steps):
            maps.append(self.step(choices.choice(KINDS), index, maps[-1], choices.choice(maps)))
        return self.head(F.avg_pool2d(maps[-1], 2).flatten(1)), F.relu(choices.choice(maps)).amax(1)


@settings(deadline=None, max_examples=8)
@given(seed=st.integers(0, 10_000))
def test_random_scales_leave_the_outputs_of_random_networks_as_they_are(seed):
    torch.manual_seed(seed)
    graph = capture(RandomNetwork(seed).eval(), torch.randn(2, 3, 6, 6)).double()
    channels = find_channels(graph)
    assume(channels.count > 0)  # in some networks every channel reaches an output
    before = {name: parameter.clone() for name, parameter in graph.named_parameters()}
    scaled = apply_scales(graph, channels, torch.exp(torch.randn(channels.count, dtype=torch.float64)))
    x = torch.randn(3, 3, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        for expected, actual in zip(pytree.tree_leaves(graph(x)), pytree.tree_leaves(scaled(x)), strict=True):
            assert (actual - expected).abs().max() <= 1e-10 * expected.abs().max()
    assert all(torch.equal(parameter, before[name]) for name, parameter in graph.named_parameters())
    assert any(not torch.equal(parameter, before[name]) for name, parameter in scaled.named_parameters())
