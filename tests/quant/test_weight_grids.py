import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from repquant.models.shortcut import split_identity
from repquant.numerics.affine import INT32_MAX, fake_quantize
from repquant.numerics.diagonal import diagonal_center
from repquant.quant.calibrate import activation_ranges, collect_histograms
from repquant.quant.convert import layer_pairs, quantize_model
from repquant.quant.diagonal import identity_weights, may_have_identity
from repquant.quant.ptq import ROUNDINGS, PtqMethod, quantize
from repquant.quant.reconstruct import ReconstructionOptions
from repquant.quant.weight_grids import find_weight_grids, least_squares_grid
from repquant.simulation.integers import quantize_parameters, weight_grid
from repquant.targets.target import resolve_target

SCALE = torch.tensor(0.02)


def target_of(bits, per_tensor=False):
    return resolve_target("openvino", weight_bits=bits, per_tensor_weights=per_tensor)


def identity_layer(seed=0, groups=1, diagonal=1.0, bias=1.0):
    """A 3x3 convolution with this factor (and its sign by channel) on its diagonal."""
    torch.manual_seed(seed)
    layer = nn.Conv2d(8, 8, 3, padding=1, groups=groups)
    channels = torch.arange(8)
    layer.weight.data[channels, channels % (8 // groups), 1, 1] = diagonal * torch.tensor([1.0, -1.0]).repeat(4)
    layer.bias.data *= bias
    return layer


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 999),
    groups=st.sampled_from([1, 2, 4]),
    diagonal=st.sampled_from([0.0, 1e-3, 0.1, 1.0, 30.0, 1e4]),
    bits=st.integers(2, 8),
    per_tensor=st.booleans(),
)
def test_the_diagonal_is_never_clipped_and_the_error_never_above_that_of_max(seed, groups, diagonal, bits, per_tensor):
    layer, scheme = identity_layer(seed, groups, diagonal), target_of(bits, per_tensor).weight
    grid = least_squares_grid(layer, SCALE, scheme)
    weight = layer.weight.detach()
    rounded = fake_quantize(weight, grid)
    center = diagonal_center(weight, groups)
    assert ((diagonal_center(rounded, groups) - center).abs() <= grid.scale * 0.501).all()
    of_max = fake_quantize(weight, weight_grid(weight, layer.bias, SCALE, scheme))
    assert (rounded - weight).double().square().sum() <= (of_max - weight).double().square().sum() * (1 + 1e-5)


@pytest.mark.parametrize("per_tensor", [False, True])
def test_the_bias_always_fits(per_tensor):
    layer, scheme = identity_layer(diagonal=1e-9, bias=1e4), target_of(8, per_tensor).weight
    layer.weight.data *= 1e-9
    integers = quantize_parameters(layer.weight, layer.bias, SCALE, least_squares_grid(layer, SCALE, scheme))
    assert integers.bias.abs().max() <= INT32_MAX // 2 + 256
    assert integers.float_bias().tolist() == pytest.approx(layer.bias.tolist(), rel=1e-5)


def test_which_weights_an_identity_branch_may_be():
    assert may_have_identity(nn.Conv2d(4, 4, 3, padding=1, groups=2))
    assert identity_weights(nn.Conv2d(4, 4, 3, padding=1, groups=2)).shape == (4,)
    factor = nn.Conv2d(4, 4, 1, groups=4)
    assert torch.equal(identity_weights(factor), factor.weight.flatten())
    for other in (nn.Conv2d(4, 8, 3), nn.Conv2d(4, 4, 3, stride=2), nn.Conv2d(4, 4, 1), nn.Linear(4, 4)):
        assert identity_weights(other) is None


def test_the_factors_of_an_identity_set_apart_are_not_clipped_either(network, images):
    split = split_identity(network, "depthwise")
    target = target_of(3, per_tensor=True)
    ranges = activation_ranges("max", collect_histograms(split, [images]), target)
    grid = find_weight_grids(split, "mse", ranges, target)["stages.1.1.shortcut"]
    assert grid.scale * target.weight.qmax >= split.stages[1][1].shortcut.weight.abs().max() * 0.999


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_every_rounding_lands_on_the_chosen_grids(network, images, rounding):
    target = target_of(4)
    ranges = activation_ranges("max", collect_histograms(network, [images]), target)
    method = PtqMethod(
        equalization="none", weight_ranges="mse", rounding=rounding, reconstruction=ReconstructionOptions(steps=3)
    )
    quantized = quantize(network, ranges, target, method, [images], ["last"])
    grids = find_weight_grids(network, "mse", ranges, target, ["last"])
    pairs = layer_pairs(network, quantized)
    assert grids.keys() == pairs.keys()
    for name, (_, layer) in pairs.items():
        assert torch.equal(layer.integers.weight_grid.scale, grids[name].scale), name


def test_the_step_is_finer_where_no_identity_branch_may_be(network, images):
    identity = network.stages[1][1].conv
    identity.weight.data[torch.arange(8), torch.arange(8), 1, 1] += 8 * identity.weight.data.abs().max()
    network.stem.conv.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    target = target_of(4)
    ranges = activation_ranges("max", collect_histograms(network, [images]), target)
    of_max = quantize_model(network, ranges, target)
    grids = find_weight_grids(network, "mse", ranges, target)
    assert torch.equal(
        grids["stages.1.1.conv"].scale, of_max.get_submodule("stages.1.1.conv").integers.weight_grid.scale
    )
    assert (grids["stem.conv"].scale / of_max.stem.conv.integers.weight_grid.scale).mean() < 0.98
    assert find_weight_grids(network, "max", ranges, target) == {}
