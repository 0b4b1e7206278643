import pytest
import torch
from torch import nn

from repquant.errors import InputError
from repquant.models.blocks import SqueezeExcite
from repquant.quant.calibrate import activation_ranges, collect_histograms
from repquant.quant.convert import quantize_model
from repquant.quant.equalize import EQUALIZATIONS, apply_scales, equalize, find_chain
from repquant.targets.target import resolve_target


def chain(*modules):
    torch.manual_seed(0)
    return nn.Sequential(*modules).eval()


def test_the_chain_of_a_network(network):
    links = find_chain(network)
    assert links[0].producer == "stem.conv"
    assert links[-1].consumer == "head"
    assert [link.producer for link in links[1:]] == [link.consumer for link in links[:-1]]
    has_excitation = any(name.endswith(".se.down") for name, _ in network.named_modules())
    assert all(bool(link.excitations) == has_excitation for link in links)


@pytest.mark.parametrize("method", EQUALIZATIONS)
@pytest.mark.parametrize("shortcut", ["inside", "apart", "residual"])
def test_the_network_computes_the_same(network, images, method, shortcut):
    scaled = equalize(network, method, [images[:4], images[4:]], resolve_target("tensorrt"), shortcut)
    with torch.no_grad():
        assert torch.allclose(scaled(images), network(images), rtol=1e-3, atol=1e-4)
    assert not torch.equal(scaled.stem.conv.weight, network.stem.conv.weight)


def test_groups_follow_the_input_channel(images):
    model = chain(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3, groups=2), nn.ReLU(), nn.Conv2d(6, 2, 1))
    links = find_chain(model)
    scaled = apply_scales(model, links, [torch.linspace(0.5, 4, 8), torch.linspace(0.2, 2, 6)])
    with torch.no_grad():
        assert torch.allclose(scaled(images), model(images), atol=1e-5)


def test_it_lowers_the_error_of_unbalanced_channels(images):
    model = chain(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    unbalanced = apply_scales(model, find_chain(model), [torch.logspace(-2, 2, 8), torch.logspace(2, -1, 8)])
    target = resolve_target("tensorrt", per_tensor_weights=True)

    @torch.no_grad()
    def error(candidate):
        ranges = activation_ranges("max", collect_histograms(candidate, [images]), target)
        return float((quantize_model(candidate, ranges, target)(images) - model(images)).square().mean())

    for method in EQUALIZATIONS:
        scaled = equalize(unbalanced, method, [images], target)
        assert error(scaled) < 0.1 * error(unbalanced)


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        y = torch.relu(self.first(x))
        return self.left(y) + self.right(y)


def test_two_consumers_are_refused():
    with pytest.raises(InputError, match="first has two consumers, left and right"):
        find_chain(Branching())


def test_a_shared_layer_is_refused():
    conv = nn.Conv2d(3, 3, 1)
    with pytest.raises(InputError, match="layer 0 is used 2 times"):
        find_chain(chain(conv, nn.ReLU(), conv))


def test_a_shared_squeeze_and_excite_block_is_refused():
    excitation = SqueezeExcite(4, reduction=2)
    convolutions = [nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)]
    with pytest.raises(InputError, match="layer 1 is used 2 times"):
        find_chain(chain(convolutions[0], excitation, nn.ReLU(), convolutions[1], excitation, convolutions[2]))


def test_a_parameter_of_two_layers_is_refused():
    model = chain(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1))
    model[3].weight = model[1].weight
    with pytest.raises(InputError, match="layers 1 and 3 share their weight; leave equalization out"):
        find_chain(model)
    model = chain(nn.Conv2d(3, 4, 1), SqueezeExcite(4, 2), nn.Conv2d(4, 4, 1), SqueezeExcite(4, 2), nn.Conv2d(4, 4, 1))
    model[3].down = model[1].down
    with pytest.raises(InputError, match=r"layers 1 and 3 share their down\.weight"):
        find_chain(model)


@pytest.mark.parametrize("module", [nn.Sigmoid(), nn.BatchNorm2d(4)])
def test_a_module_that_does_not_commute_is_refused(module):
    with pytest.raises(InputError, match=rf"{type(module).__name__} 1 behind layer 0"):
        find_chain(chain(nn.Conv2d(3, 4, 1), module, nn.Conv2d(4, 4, 1)))


def test_no_images():
    with pytest.raises(InputError, match="no calibration images"):
        equalize(chain(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)), "noise", [], resolve_target("tensorrt"))


def test_a_dead_channel_stays_bounded(images):
    model = chain(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1))
    with torch.no_grad():
        model[0].weight[1] = 0.0
        model[0].bias[1] = -1.0
        model[2].weight[:, 2] = 0.0
    scaled = equalize(model, "noise", [images], resolve_target("tensorrt"))
    assert all(parameter.isfinite().all() for parameter in scaled.parameters())
    with torch.no_grad():
        assert torch.allclose(scaled(images), model(images), atol=1e-5)


def test_a_linear_layer_behind_a_flattened_map_is_refused():
    with pytest.raises(InputError, match=r"layer 2 reads 36 inputs, 0 has 4 channels"):
        find_chain(chain(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(36, 2)))
