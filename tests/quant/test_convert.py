import copy

import pytest
import torch
from torch import nn

from repquant.errors import InputError
from repquant.models.blocks import SHORTCUT_KINDS
from repquant.models.shortcut import split_identity
from repquant.numerics.distance import sqnr_db
from repquant.quant.calibrate import activation_ranges, collect_histograms
from repquant.quant.convert import layer_names, quantization_points, quantize_model, resolve_keep_float
from repquant.simulation.layers import QuantizedConv2d, QuantizedInput, QuantizedLinear
from repquant.targets.target import TARGETS, resolve_target


def quantized(model, images, target="onnxruntime", keep_float=(), **settings):
    schemes = resolve_target(target, **settings)
    ranges = activation_ranges("max", collect_histograms(model, [images]), schemes)
    return quantize_model(model, ranges, schemes, keep_float)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("per_tensor", [False, True])
def test_quantized_network_follows_the_float_one(network, images, target, per_tensor):
    model = quantized(network, images, target, per_tensor_weights=per_tensor)
    with torch.inference_mode():
        assert 15 < sqnr_db(network(images), model(images)) < 80


def test_the_input_is_not_changed(network, images):
    before = copy.deepcopy(network.state_dict())
    model = quantized(network, images)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert not any(isinstance(module, QuantizedConv2d) for module in network.modules())
    shared = {p.data_ptr() for p in network.parameters()} & {p.data_ptr() for p in model.parameters()}
    assert not shared


def test_every_layer_is_quantized_first_and_last_included(network, images):
    model = quantized(network, images)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert layers
    assert all(isinstance(layer, QuantizedConv2d | QuantizedLinear) for layer in layers)
    assert isinstance(model.stem.conv, QuantizedConv2d)
    assert isinstance(model.head, QuantizedLinear)
    assert isinstance(model.pool, QuantizedInput)


def test_a_squeeze_excite_input_is_quantized_once(network, images):
    excitations = [name for name in quantization_points(network) if name.endswith(".se")]
    assert len(excitations) == (6 if network.spec.squeeze_excite else 0)
    model = quantized(network, images)
    for name in excitations:
        block = model.get_submodule(name)
        assert isinstance(block, QuantizedInput)
        assert isinstance(block.module.down, QuantizedConv2d)
        assert type(block.module.pool) is nn.AdaptiveAvgPool2d


def test_layers_hold_the_integers_and_compute_with_them(network, images):
    model = quantized(network, images)
    layers = [m for m in model.modules() if isinstance(m, QuantizedConv2d | QuantizedLinear)]
    for layer in layers:
        assert torch.equal(layer.weight, layer.integers.weight.float())
        assert torch.equal(layer.bias, layer.integers.bias.float())
        assert layer.integers.weight.dtype == torch.int8
        assert layer.integers.bias.dtype == torch.int32


@pytest.mark.parametrize("target", TARGETS)
def test_a_layer_equals_integer_arithmetic(network, images, target):
    """x_q, w_q and b_q in int64, one rescaling at the end: no float sum is involved."""
    layer = quantized(network, images, target).stem.conv
    grid = layer.input
    x_q = (torch.round(images.double() / grid.scale) + grid.zero_point).clamp(grid.scheme.qmin, grid.scheme.qmax)
    columns = nn.functional.unfold(x_q - grid.zero_point, 3, padding=1, stride=2).to(torch.int64)
    weight = layer.integers.weight.to(torch.int64).flatten(1)
    accumulator = weight @ columns + layer.integers.bias.to(torch.int64)[:, None]
    expected = accumulator.double() * layer.integers.bias_scale.double()[:, None]
    with torch.inference_mode():
        found = layer(images).flatten(2).double()
    # A value of x on the border of two integers may be rounded either way by the reciprocal of the scale.
    assert ((found - expected).abs() <= 1e-6 * expected.abs() + 1e-9).float().mean() > 0.999


def test_keep_float_by_shortcut_name_and_enclosing_module(network, images):
    kept = resolve_keep_float(network, ["first", "last", "stages.1.0"])
    assert {"stem.conv", "head", "stages.1.0.conv"} <= kept
    assert "stages.1.1.conv" not in kept
    model = quantized(network, images, keep_float=["first", "last"])
    assert type(model.stem.conv) is nn.Conv2d
    assert type(model.head) is nn.Linear
    assert torch.equal(model.stem.conv.weight, network.stem.conv.weight)


def test_keep_float_with_a_mistyped_name(network):
    with pytest.raises(InputError, match=r"'stages.1.0.convv'.*did you mean 'stages.1.0.conv'"):
        resolve_keep_float(network, ["stages.1.0.convv"])


def test_nothing_left_to_quantize(network, images):
    """Pools and squeeze-and-excite inputs are left, but no layer; this is found out before an image is seen."""
    everything = layer_names(network)
    with pytest.raises(InputError, match="nothing is left to quantize: every layer is kept in float"):
        collect_histograms(network, iter(()), everything)
    ranges = activation_ranges("max", collect_histograms(network, [images]), resolve_target("tensorrt"))
    with pytest.raises(InputError, match="nothing is left"):
        quantize_model(network, ranges, resolve_target("tensorrt"), everything)
    assert quantization_points(network, everything[1:])


def test_missing_range_is_named(network):
    with pytest.raises(InputError, match=r"no activation range for .*stem\.conv"):
        quantize_model(network, {}, resolve_target("tensorrt"))


def test_a_users_own_network_keeps_groups_dilation_and_padding(images):
    torch.manual_seed(0)
    backbone = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding="same", dilation=2),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, groups=4, padding=1, bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )
    assert layer_names(backbone) == ("0", "2", "5")
    assert list(quantization_points(backbone)) == ["0", "2", "3", "5"]
    model = quantized(backbone, images, "tensorrt")
    with torch.inference_mode():
        assert sqnr_db(backbone(images), model(images)) > 20


@pytest.mark.parametrize("kind", SHORTCUT_KINDS)
@pytest.mark.parametrize("name", ["tensorrt", "onnxruntime"])
def test_a_convolution_in_float_takes_its_identity_branch_with_it(network, images, kind, name):
    split = split_identity(network, kind)
    kept = "stages.1.1.conv"
    points = quantization_points(split, [kept])
    assert not [point for point in points if point.startswith("stages.1.1.") and ".se" not in point]
    target = resolve_target(name)
    ranges = activation_ranges("max", collect_histograms(split, [images], [kept]), target)
    block = quantize_model(split, ranges, target, [kept]).get_submodule("stages.1.1")
    x = torch.randn(2, block.spec.in_channels, 4, 4)
    with torch.no_grad():
        summed = block.conv(x) + block.shortcut(x)
        before = split.get_submodule("stages.1.1")
        assert torch.equal(summed, before.conv(x) + before.shortcut(x))
