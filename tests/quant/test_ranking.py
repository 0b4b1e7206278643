import pytest

from repquant.errors import InputError
from repquant.quant.calibrate import activation_ranges, collect_histograms
from repquant.quant.convert import quantize_model
from repquant.quant.ranking import rank_layers
from repquant.quant.sensitivity import measure_sensitivity
from repquant.targets.target import resolve_target


@pytest.fixture
def quantized(network, images):
    target = resolve_target("tensorrt", weight_bits=3)
    return quantize_model(network, activation_ranges("max", collect_histograms(network, [images]), target), target)


def test_the_order_is_that_of_the_whole_analysis(network, quantized, images):
    seen = []
    ranked = rank_layers(network, quantized, images.split(3), seen.append)
    harm = {
        layer.name: layer.only.kl
        for layer in measure_sensitivity(network, quantized, [images]).layers
        if layer.has_weights
    }
    assert harm.keys() == set(ranked)
    assert [harm[name] for name in ranked] == pytest.approx(sorted(harm.values(), reverse=True), rel=1e-3)
    assert seen == [3, 3, 2]


def test_no_images(network, quantized):
    with pytest.raises(InputError, match="no images to rank layers with; give at least 1"):
        rank_layers(network, quantized, [])
