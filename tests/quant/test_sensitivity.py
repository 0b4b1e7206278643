import copy
from math import isfinite

import pytest
import torch
from torch import nn

from repquant.errors import InputError
from repquant.models.network import build
from repquant.models.reparam import reparameterize
from repquant.models.spec import ArchSpec
from repquant.numerics.affine import Scheme, grid_for_range
from repquant.numerics.distance import softmax_kl, sqnr_db
from repquant.quant.bias_correction import correct_biases
from repquant.quant.calibrate import activation_ranges, collect_histograms
from repquant.quant.convert import quantization_points, quantize_model
from repquant.quant.sensitivity import identity_mask, measure_sensitivity, step_histogram
from repquant.simulation.integers import quantize_parameters
from repquant.targets.target import resolve_target

TARGET = resolve_target("tensorrt")


def ranges_of(model, images):
    return activation_ranges("max", collect_histograms(model, [images]), TARGET)


def quantize(model, images, keep_float=()):
    return quantize_model(model, ranges_of(model, images), TARGET, keep_float)


def outputs(model, images):
    with torch.inference_mode():
        return model(images)


def kl(model, other, images):
    return softmax_kl(outputs(model, images), outputs(other, images)).mean().item()


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Networks as small as these are slower with more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small_network(blocks=(1, 2, 1, 1), squeeze_excite=False):
    """A deploy network whose diagonals stand out as an identity branch leaves them."""
    torch.manual_seed(0)
    spec = ArchSpec(name="small", blocks=blocks, widths=(0.25, 0.125, 0.0625, 0.03125), squeeze_excite=squeeze_excite)
    model = reparameterize(build(spec, 5).eval())
    for module in model.modules():
        if (mask := identity_mask(module)) is not None:
            module.weight.data[mask] += 8 * module.weight.data.abs().max()
    model.head.weight.data *= 500 if squeeze_excite else 5  # so that the noise reaches the softmax
    return model


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "squeeze-excite"])
def strong(request):
    """No test may change it."""
    return small_network(squeeze_excite=request.param)


@pytest.fixture(scope="module")
def plain():
    """No test may change it."""
    return small_network()


@pytest.fixture(scope="module")
def images():
    return torch.randn(8, 3, 32, 48, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def measured(strong, images):
    return measure_sensitivity(strong, quantize(strong, images), images.split(3))


def layer_of(measured, name):
    (layer,) = [layer for layer in measured.layers if layer.name == name]
    return layer


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_identity_lands_on_the_center_of_the_diagonal_of_its_group(groups):
    mask = identity_mask(nn.Conv2d(4, 4, 3, padding=1, groups=groups))
    assert mask.shape == (4, 4 // groups, 3, 3)
    assert mask.nonzero().tolist() == [[i, i % (4 // groups), 1, 1] for i in range(4)]


@pytest.mark.parametrize(
    "module",
    [nn.Conv2d(4, 4, 3, stride=2), nn.Conv2d(4, 8, 3), nn.Conv2d(4, 4, 1), nn.Linear(4, 4), nn.AdaptiveAvgPool2d(1)],
)
def test_no_identity_fits_other_shapes(module):
    assert identity_mask(module) is None


def test_integers_are_counted():
    weight = torch.zeros(2, 2, 3, 3)
    weight[0, 0, 1, 1] = weight[1, 1, 1, 1] = 3.0
    weight[0, 1, 0, 0], weight[1, 0, 2, 2] = -1.0, 2.0
    scheme = Scheme(bits=3, narrow=True, channel_axis=0)
    grid = grid_for_range(torch.full((2,), -3.0), torch.full((2,), 3.0), scheme)
    integers = quantize_parameters(weight, None, torch.tensor(1.0), grid)
    histogram = step_histogram("a", integers, identity_mask(nn.Conv2d(2, 2, 3)))
    assert histogram.first == -3
    assert histogram.diagonal == (0, 0, 0, 0, 0, 0, 2)
    assert histogram.others == (0, 0, 1, 32, 0, 1, 0)


def test_points_are_those_that_were_quantized(strong, images):
    kept = ["stem.conv", "head"]
    measured = measure_sensitivity(strong, quantize(strong, images, kept), [images])
    assert [layer.name for layer in measured.layers] == list(quantization_points(strong, kept))


def test_whole_is_the_quantized_network(strong, images, measured):
    assert measured.images == len(images)
    assert measured.both.kl == pytest.approx(kl(strong, quantize(strong, images), images), rel=1e-5)
    assert measured.both.kl > 1e-6


def test_all_but_a_layer_is_the_network_that_keeps_it_in_float(strong, images, measured):
    names = ["stem.conv", "stages.1.1.conv", "head"]
    names += [layer.name for layer in measured.layers if layer.name == "stages.1.1.se.down"]
    for name in names:
        expected = kl(strong, quantize(strong, images, [name]), images)
        assert layer_of(measured, name).all_but.kl == pytest.approx(expected, rel=1e-5), name


def test_only_a_layer_is_the_float_network_with_that_one_in_it(strong, images, measured):
    quantized = quantize(strong, images)
    for block, name in ((None, "pool"), (None, "head"), ("stages.1.1", "conv"), ("stem", "conv")):
        one = copy.deepcopy(strong)
        path = f"{block}.{name}" if block else name
        one.get_submodule(block or "").register_module(name, quantized.get_submodule(path))
        assert layer_of(measured, path).only.kl == pytest.approx(kl(strong, one, images), rel=1e-5, abs=1e-12), path


def test_weights_alone_and_activations_alone(strong, images, measured):
    quantized = quantize(strong, images)
    weights, activations = copy.deepcopy(strong), copy.deepcopy(quantized)
    rounded = [layer.integers for layer in quantized.modules() if hasattr(layer, "integers")]
    floats = [layer for layer in weights.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    for layer, integers in zip(floats, rounded, strict=True):
        layer.weight.data, layer.bias.data = integers.float_weight(), integers.float_bias()
    assert measured.weights.kl == pytest.approx(kl(strong, weights, images), rel=1e-5)
    originals = [layer for layer in strong.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    for layer, original in zip(
        [module for module in activations.modules() if hasattr(module, "integers")], originals, strict=True
    ):
        layer.forward = lambda x, layer=layer, original=original: original(layer.input(x))
    assert measured.activations.kl == pytest.approx(kl(strong, activations, images), rel=1e-5)


def test_agreement_counts_images(plain, images):
    """The head's bias lifts class 0 above all others on every image, in the quantized network only."""
    shifted = copy.deepcopy(plain)
    shifted.head.bias.data[0] += 1000
    measured = measure_sensitivity(plain, quantize_model(shifted, ranges_of(plain, images), TARGET), [images])
    expected = 100 * (outputs(plain, images).argmax(1) == 0).double().mean().item()
    assert expected < 100
    for divergence in (measured.both, measured.weights, layer_of(measured, "head").only):
        assert divergence.agreement == expected
    assert layer_of(measured, "head").all_but.agreement == 100
    assert measured.activations.agreement == 100


def test_noise_of_weights_and_input(strong, images, measured):
    layer = quantize(strong, images).stem.conv
    stem = layer_of(measured, "stem.conv")
    assert stem.weight_sqnr_db == pytest.approx(
        sqnr_db(strong.stem.conv.weight.detach(), layer.integers.float_weight())
    )
    assert stem.input_sqnr_db == pytest.approx(sqnr_db(images, layer.input(images)), rel=1e-6)
    pool = layer_of(measured, "pool")
    assert (pool.kind, pool.weight_sqnr_db, pool.range_over_sigma) == ("pool", None, None)
    assert pool.input_sqnr_db > 20


def test_identity_layers_are_seen_and_one_of_them_is_counted(strong, measured):
    shares = {layer.name: layer.diagonal_share for layer in measured.layers if layer.may_hold_identity}
    assert shares == {"stages.1.1.conv": 1.0}
    identity, other = layer_of(measured, "stages.1.1.conv"), layer_of(measured, "stages.1.0.conv")
    assert identity.diagonal_ratio > 7
    assert identity.kind == other.kind == "conv3x3"
    assert identity.range_over_sigma_max >= identity.range_over_sigma > 2 * other.range_over_sigma
    assert identity.weight_sqnr_db < other.weight_sqnr_db
    channels = strong.stages[1][1].conv.out_channels
    assert measured.histogram.layer == "stages.1.1.conv"
    assert measured.histogram.diagonal[-1] == sum(measured.histogram.diagonal) == channels
    assert sum(measured.histogram.others) == strong.stages[1][1].conv.weight.numel() - channels


def test_nothing_of_the_models_is_changed(strong, images):
    quantized = quantize(strong, images)
    quantized = quantize_model(correct_biases(strong, quantized, [images]), ranges_of(strong, images), TARGET)
    before = [copy.deepcopy(model.state_dict()) for model in (strong, quantized)]
    classes = [[type(module) for module in model.modules()] for model in (strong, quantized)]
    measure_sensitivity(strong, quantized, [images])
    for model, state, types in zip((strong, quantized), before, classes, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        assert [type(module) for module in model.modules()] == types
        assert not any(module._forward_pre_hooks for module in model.modules())


def test_batches_are_summed_and_reported(strong, images, measured):
    seen = []
    whole = measure_sensitivity(strong, quantize(strong, images), [images], on_batch=seen.append)
    assert seen == [8]
    assert whole.both.kl == pytest.approx(measured.both.kl, rel=1e-5)
    assert whole.layers[0].only.kl == pytest.approx(measured.layers[0].only.kl, rel=1e-5)


def test_no_images(plain, images):
    with pytest.raises(InputError, match="no images to analyze; give at least 1"):
        measure_sensitivity(plain, quantize(plain, images), [])


def test_a_network_without_identity_branches(images):
    model = small_network(blocks=(1, 1, 1, 1))
    measured = measure_sensitivity(model, quantize(model, images), [images])
    assert measured.histogram is None
    assert not any(layer.may_hold_identity for layer in measured.layers)


@pytest.mark.parametrize("value", [0.0, 0.1])
def test_a_layer_with_constant_weights(images, value):
    network = small_network()
    network.stages[1][1].conv.weight.data.fill_(value)
    layer = layer_of(measure_sensitivity(network, quantize(network, images), [images]), "stages.1.1.conv")
    assert (layer.range_over_sigma, layer.range_over_sigma_max, layer.diagonal_share) == (None, None, 0)
    assert layer.weight_sqnr_db is None or isfinite(layer.weight_sqnr_db)
    assert isfinite(layer.only.kl)


def test_logits_that_are_no_numbers(plain, images):
    quantized = quantize(plain, images)
    quantized.head.accumulator_scale.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="returned NaN or infinite logits"):
        measure_sensitivity(plain, quantized, [images])
