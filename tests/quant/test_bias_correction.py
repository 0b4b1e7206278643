import copy

import pytest
import torch
from torch import nn

from repquant.errors import InputError
from repquant.quant.bias_correction import correct_biases
from repquant.quant.calibrate import activation_ranges, collect_histograms
from repquant.quant.convert import layer_names, quantize_model
from repquant.targets.target import resolve_target


def quantize(model, images, weights_of=None, **settings):
    target = resolve_target("onnxruntime", **settings)
    ranges = activation_ranges("max", collect_histograms(model, [images]), target)
    return quantize_model(weights_of or model, ranges, target)


def test_a_single_layer_gets_its_float_mean():
    """Inputs of mean 1/2 times a weight that rounds to zero: the whole mean is lost, and comes back."""
    layer = nn.Sequential(nn.Conv2d(2, 1, 1))
    layer[0].weight.data = torch.tensor([1.27, 0.004]).reshape(1, 2, 1, 1)
    layer[0].bias.data.zero_()
    images = torch.rand(4, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    quantized = quantize(layer, images)
    corrected = correct_biases(layer, quantized, [images])
    lost = 0.004 * images[:, 1].mean()
    assert corrected[0].bias.item() == pytest.approx(lost.item(), rel=0.2)
    again = quantize(layer, images, weights_of=corrected)
    assert (again(images) - layer(images)).mean().abs() < 1e-4


def test_every_layer_gets_its_float_mean(network, images):
    """Coarse weights, as the identity's kernel leaves them; the bias can be set to half a step of the accumulator."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.weight.shape[2:] == (3, 3):
            module.weight.data[:, 0, 1, 1] += 8 * module.weight.data.abs().max()
    quantized = quantize(network, images)
    corrected = quantize(network, images, weights_of=correct_biases(network, quantized, [images]))

    def mean_errors(model):
        pairs = [(network.get_submodule(name), layer) for name, layer in model.named_modules() if name in means]
        found = {}
        hooks = [
            layer.register_forward_hook(
                lambda _m, _x, y, key=i: found.__setitem__(key, y.transpose(0, 1).flatten(1).mean(1))
            )
            for i, (_, layer) in enumerate(pairs)
        ]
        with torch.inference_mode():
            model(images)
        for hook in hooks:
            hook.remove()
        return found

    means = {name for name in layer_names(network) if ".se." not in name}
    expected = mean_errors(network)
    before, after = (mean_errors(model) for model in (quantized, corrected))
    for key, mean in expected.items():
        assert (after[key] - mean).abs().mean() <= 0.5 * (before[key] - mean).abs().mean() + 1e-3


def test_nothing_given_is_changed(network, images):
    before = copy.deepcopy(network.state_dict())
    quantized = quantize(network, images)
    correct_biases(network, quantized, [images])
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert not any(module._forward_hooks for model in (network, quantized) for module in model.modules())


def test_layers_without_bias_stay(images):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    corrected = correct_biases(model, quantize(model, images), [images])
    assert corrected[0].bias is None
    assert torch.equal(corrected[0].weight, model[0].weight)


def test_a_layer_in_two_places_is_refused(images, twice, tied):
    with pytest.raises(InputError, match="layer middle is used more than once"):
        correct_biases(twice, quantize(twice, images), [images])
    with pytest.raises(InputError, match="layers middle and last share their weight"):
        correct_biases(tied, quantize(tied, images), [images])
