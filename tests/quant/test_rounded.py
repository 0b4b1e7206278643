import copy

import pytest
import torch

from repquant.errors import InputError
from repquant.models.shortcut import split_identity
from repquant.quant.calibrate import activation_ranges, collect_histograms
from repquant.quant.convert import layer_pairs
from repquant.quant.ptq import PtqMethod, round_model
from repquant.quant.rounded import with_float_layers
from repquant.targets.target import resolve_target


@pytest.mark.parametrize("kept", [["first", "stages.1.1"], ["head"]])
def test_layers_in_float_after_all(network, images, kept):
    model, target = split_identity(network, "depthwise"), resolve_target("openvino", weight_bits=4)
    ranges = activation_ranges("max", collect_histograms(model, [images]), target)
    rounded = round_model(model, ranges, target, PtqMethod(equalization="none"), [images])
    before = copy.deepcopy(rounded.model.state_dict())
    fewer = with_float_layers(rounded, model, kept)
    whole, part = rounded.quantized(ranges, target), fewer.quantized(ranges, target, kept)
    every, some = layer_pairs(model, whole), layer_pairs(model, part)
    assert some.keys() < every.keys()
    for name, (_, quantized) in some.items():
        assert torch.equal(quantized.integers.weight, every[name][1].integers.weight)
    for name in every.keys() - some.keys():
        assert torch.equal(fewer.model.get_submodule(name).weight, model.get_submodule(name).weight)
        assert torch.equal(rounded.model.get_submodule(name).weight, before[f"{name}.weight"])


def test_a_layer_that_is_not_there(network, images):
    target = resolve_target("tensorrt")
    ranges = activation_ranges("max", collect_histograms(network, [images]), target)
    rounded = round_model(network, ranges, target, PtqMethod(rounding="nearest"), [])
    with pytest.raises(InputError, match="no layer is named 'tail'"):
        with_float_layers(rounded, network, ["tail"])
