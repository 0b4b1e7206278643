import pytest
import torch
from torch import nn

from repquant.choices import SHORTCUT_KINDS
from repquant.graph.capture import capture
from repquant.graph.operators import layer_nodes
from repquant.methods.identity import (
    count_identities,
    diagonal_center,
    identity_layers,
    identity_mask,
    identity_weights,
    may_have_identity,
    split_identity,
)
from repquant.numerics.distance import sqnr_db
from repquant.simulation.network import simulate
from repquant.targets.target import resolve_target

SCHEME = resolve_target("tensorrt").weight


def kernel(graph, name):
    return graph.get_submodule(name).weight.detach()


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_identity_lands_on_the_center_of_the_diagonal_of_its_group(groups):
    layer = nn.Conv2d(4, 4, 3, padding=1, groups=groups)
    mask = identity_mask(layer)
    assert mask.nonzero().tolist() == [[i, i % (4 // groups), 1, 1] for i in range(4)]
    assert torch.equal(diagonal_center(layer.weight), layer.weight[mask])
    assert torch.equal(identity_weights(layer), layer.weight[mask])


class Other(nn.Conv2d):
    pass


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 3, stride=2, padding=1),
        nn.Conv2d(4, 8, 3, padding=1),
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2),
        nn.Conv2d(4, 4, 1),
        nn.ConvTranspose2d(4, 4, 3, padding=1),
        nn.Linear(4, 4),
        Other(4, 4, 3, padding=1),
    ],
)
def test_no_identity_fits_other_shapes(layer):
    assert not may_have_identity(layer)
    assert identity_mask(layer) is None
    assert identity_weights(layer) is None


def test_the_factor_of_a_shortcut_is_an_identity_weight():
    factor = nn.Conv2d(4, 4, 1, groups=4)
    assert torch.equal(identity_weights(factor), factor.weight.flatten())


@pytest.mark.parametrize("kind", SHORTCUT_KINDS)
def test_the_network_computes_the_same_and_is_not_changed(mixed, images, kind):
    before = {name: value.clone() for name, value in mixed.state_dict().items()}
    split = split_identity(mixed, kind, SCHEME, identity_layers(mixed))
    assert count_identities(mixed) == 2  # the block, and the depthwise convolution
    with torch.no_grad():
        assert sqnr_db(mixed(images), split(images)) > 100
    assert all(torch.equal(before[name], value) for name, value in mixed.state_dict().items())
    shortcuts = ["block_shortcut", "depthwise_shortcut"] if kind != "residual" else []
    assert sorted(layer_nodes(split).keys() - layer_nodes(mixed).keys()) == shortcuts
    assert split.get_submodule("block").bias is not None


def test_what_each_kind_leaves_in_the_kernel(mixed):
    original = kernel(mixed, "block")
    residual, depthwise, coarse = (
        kernel(split_identity(mixed, kind, SCHEME, identity_layers(mixed)), "block") for kind in SHORTCUT_KINDS
    )
    assert torch.equal(diagonal_center(residual), diagonal_center(original) - 1)
    assert torch.equal(diagonal_center(depthwise), torch.zeros(8))
    step = original[:, :, 1, 1].abs().amax(1) / SCHEME.qmax
    assert (coarse[:, :, 1, 1].abs().amax(1) <= step * 0.501).all()


def test_layers_in_float_stay_whole(mixed):
    split = split_identity(mixed, "depthwise", SCHEME, identity_layers(mixed, ["block"]))
    assert torch.equal(kernel(split, "block"), kernel(mixed, "block"))
    assert "block_shortcut" not in layer_nodes(split)
    assert count_identities(mixed, ["block"]) == 1


@pytest.mark.parametrize("kind", SHORTCUT_KINDS)
@pytest.mark.parametrize("factor", [-0.7, 0.0, 1.0])
def test_no_factor_does_harm(plan, kind, factor):
    """The convolution adds in 32 bits; a shortcut with weights ends in 8, on one grid for all channels."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()).eval()
    diagonal = torch.where(torch.arange(16) % 2 == 0, factor, 1.0)
    network[0].weight.data[torch.arange(16), torch.arange(16), 1, 1] = diagonal
    maps = torch.randn(8, 16, 12, 12, generator=torch.Generator().manual_seed(1)).relu()
    split = split_identity(capture(network, maps), kind, SCHEME, ["0"])
    simulated = simulate(split, plan(split, [maps], resolve_target("tensorrt")))
    with torch.no_grad():
        expected, found = network(maps), simulated(maps)
    assert sqnr_db(expected[:, 1::2], found[:, 1::2]) > 35
    # A residual adds the input itself, so the convolution has to take it back.
    assert sqnr_db(expected[:, ::2], found[:, ::2]) > (19 if kind == "residual" and factor <= 0 else 30)
