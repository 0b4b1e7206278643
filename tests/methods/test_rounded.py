import pytest
import torch

from repquant.methods.feedback import round_weights
from repquant.methods.rounded import with_float_layers
from repquant.simulation.network import quantized_layers
from repquant.targets.target import resolve_target


@pytest.mark.parametrize("kept", [["first", "gate"], ["head"]])
def test_layers_in_float_after_all(mixed, images, plan, kept):
    target = resolve_target("openvino", weight_bits=4)
    rounded = round_weights(mixed, plan(mixed, [images], target), [images])
    before = {name: value.clone() for name, value in rounded.graph.state_dict().items()}
    fewer = with_float_layers(rounded, mixed, plan(mixed, [images], target, kept))
    every, some = (quantized_layers(result.simulated()) for result in (rounded, fewer))
    assert some.keys() < every.keys()
    for name, layer in some.items():
        assert torch.equal(layer.integers.weight, every[name].integers.weight)
    for name in every.keys() - some.keys():
        assert torch.equal(fewer.graph.get_submodule(name).weight, mixed.get_submodule(name).weight)
    assert all(torch.equal(before[name], value) for name, value in rounded.graph.state_dict().items())
