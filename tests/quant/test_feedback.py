import copy

import pytest
import torch
from torch import nn

from repquant.errors import InputError
from repquant.models.shortcut import split_identity
from repquant.quant.calibrate import activation_ranges, collect_histograms
from repquant.quant.convert import layer_pairs, quantize_model
from repquant.quant.feedback import round_weights
from repquant.targets.target import resolve_target


def quantized_pair(network, images, target, keep_float=()):
    ranges = activation_ranges("max", collect_histograms(network, [images]), target)
    return ranges, quantize_model(network, ranges, target, keep_float)


@torch.no_grad()
def error(model, reference, images):
    return float((model(images) - reference(images)).square().mean())


@pytest.mark.parametrize("bits", [4, 8])
def test_outputs_come_closer_to_float(network, images, bits):
    target = resolve_target("onnxruntime", weight_bits=bits)
    ranges, nearest = quantized_pair(network, images, target)
    rounded = round_weights(network, nearest, images)
    result = quantize_model(rounded.model, ranges, target, (), rounded.weight_grids)
    assert error(result, network, images) < 0.7 * error(nearest, network, images)


def test_integers_are_the_ones_that_the_rounding_chose(network, images):
    target = resolve_target("tensorrt", weight_bits=6)
    ranges, nearest = quantized_pair(network, images, target, ["first"])
    rounded = round_weights(network, nearest, images)
    result = quantize_model(rounded.model, ranges, target, ["first"], rounded.weight_grids)
    assert torch.equal(rounded.model.stem.conv.weight, network.stem.conv.weight)
    for name, (layer, quantized) in layer_pairs(rounded.model, result).items():
        assert torch.allclose(quantized.integers.float_weight(), layer.weight, rtol=1e-6, atol=1e-9)
        assert quantized.integers.weight_grid == rounded.weight_grids[name]
        assert quantized.integers.weight.abs().max() <= 31


def test_nothing_that_is_given_changes(network, images):
    target = resolve_target("tensorrt")
    _, nearest = quantized_pair(network, images, target)
    before = copy.deepcopy(network.state_dict()), copy.deepcopy(nearest.state_dict())
    counted = []
    round_weights(network, nearest, images, on_layer=counted.append)
    for state, now in zip(before, (network.state_dict(), nearest.state_dict()), strict=True):
        assert all(torch.equal(state[name], now[name]) for name in state)
    assert sum(counted) == len([m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)])


def test_groups_per_tensor_weights_and_layers_without_bias(images):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=4)
    ).eval()
    target = resolve_target("tensorrt", weight_bits=4, per_tensor_weights=True)
    ranges, nearest = quantized_pair(model, images, target)
    rounded = round_weights(model, nearest, images)
    assert rounded.model[0].bias is None
    result = quantize_model(rounded.model, ranges, target, (), rounded.weight_grids)
    assert error(result, model, images) < 0.9 * error(nearest, model, images)


@pytest.mark.parametrize("kind", ["residual", "depthwise", "coarse-fine"])
def test_blocks_with_a_shortcut(network, images, kind):
    split = split_identity(network, kind)
    target = resolve_target("onnxruntime", weight_bits=5)
    ranges, nearest = quantized_pair(split, images, target)
    rounded = round_weights(split, nearest, images)
    result = quantize_model(rounded.model, ranges, target, (), rounded.weight_grids)
    assert error(result, network, images) < error(nearest, network, images)


@pytest.mark.parametrize("padding", [{"padding": "same"}, {"padding": 1, "padding_mode": "reflect"}])
def test_any_padding(images, padding):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, **padding), nn.ReLU(), nn.Conv2d(8, 4, 3, **padding)).eval()
    target = resolve_target("tensorrt", weight_bits=4)
    ranges, nearest = quantized_pair(model, images, target)
    rounded = round_weights(model, nearest, images)
    result = quantize_model(rounded.model, ranges, target, (), rounded.weight_grids)
    assert error(result, model, images) < 0.9 * error(nearest, model, images)


def test_a_layer_in_two_places_is_refused(images, twice, tied):
    target = resolve_target("tensorrt")
    with pytest.raises(InputError, match="layer middle is used more than once"):
        round_weights(twice, quantized_pair(twice, images, target)[1], images)
    with pytest.raises(InputError, match="layers middle and last share their weight"):
        round_weights(tied, quantized_pair(tied, images, target)[1], images)
