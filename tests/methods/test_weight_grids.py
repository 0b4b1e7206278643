import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from repquant.choices import ROUNDINGS
from repquant.methods.identity import diagonal_center, identity_layers, split_identity
from repquant.methods.kernel_rounding import SHARES
from repquant.methods.ptq import PtqMethod, round_graph
from repquant.methods.reconstruct import ReconstructionOptions
from repquant.methods.weight_grids import find_weight_grids, least_squares_grid
from repquant.numerics.affine import INT32_MAX, fake_quantize
from repquant.numerics.channel_fit import GAINS
from repquant.simulation.integers import quantize_parameters, weight_grid
from repquant.simulation.layers import weight_scheme
from repquant.simulation.network import quantized_layers
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
    assert ((diagonal_center(rounded) - diagonal_center(weight)).abs() <= grid.scale * 0.501).all()
    of_max = fake_quantize(weight, weight_grid(weight, layer.bias, SCALE, scheme))
    assert (rounded - weight).double().square().sum() <= (of_max - weight).double().square().sum() * (1 + 1e-5)


@pytest.mark.parametrize("per_tensor", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_the_bias_always_fits(per_tensor, transposed):
    layer, scheme = identity_layer(diagonal=1e-9, bias=1e4), target_of(8, per_tensor).weight
    if transposed:
        layer = nn.ConvTranspose2d(6, 8, 2, groups=2)
        layer.bias.data *= 1e4
    layer.weight.data *= 1e-9
    grid = least_squares_grid(layer, SCALE, scheme)
    assert grid.scheme == weight_scheme(layer, scheme)
    integers = quantize_parameters(layer.weight, layer.bias, SCALE, grid, 2 if transposed else 1)
    assert integers.bias.abs().max() <= INT32_MAX // 2 + 256
    assert integers.float_bias().tolist() == pytest.approx(layer.bias.tolist(), rel=1e-5)


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_every_rounding_lands_on_the_chosen_grids(mixed, images, plan, rounding):
    method = PtqMethod(weight_ranges="mse", rounding=rounding, reconstruction=ReconstructionOptions(steps=3))
    whole = plan(mixed, [images], target_of(4), ["last"])
    grids = find_weight_grids(mixed, "mse", whole)
    layers = quantized_layers(round_graph(mixed, whole, method, [images]).simulated())
    assert grids.keys() == layers.keys() == whole.layout.layers.keys()
    for name, layer in layers.items():
        factors = layer.integers.weight_grid.scale / grids[name].scale
        smallest = 1.0 if rounding == "nearest" else SHARES[-1]
        least, most = GAINS if rounding == "feedback" else (1.0, 1.0)
        assert factors.min() >= smallest * least * (1 if rounding == "nearest" else 1 - 1e-6), name
        assert factors.max() <= most, name


def test_the_step_is_finer_where_no_weight_is_needed(mixed, images, plan):
    whole = plan(mixed, [images], target_of(3))
    grids = find_weight_grids(mixed, "mse", whole)
    of_max = quantized_layers(round_graph(mixed, whole, PtqMethod(rounding="nearest"), []).simulated())
    for name in ("grouped", "shortcut", "mixer", "up"):
        assert (grids[name].scale / of_max[name].integers.weight_grid.scale).mean() < 0.98, name
    assert find_weight_grids(mixed, "max", whole) == {}


def test_the_factors_of_an_identity_set_apart_are_not_clipped(mixed, images, plan):
    target = target_of(3, per_tensor=True)
    split = split_identity(mixed, "depthwise", target.weight, identity_layers(mixed))
    grid = find_weight_grids(split, "mse", plan(split, [images], target))["block_shortcut"]
    assert grid.scale * target.weight.qmax >= split.get_submodule("block_shortcut").weight.abs().max() * 0.999
