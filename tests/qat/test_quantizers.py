from dataclasses import replace

import pytest
import torch
from torch import nn

from repquant.numerics.affine import Scheme, dequantize, grid_for_range, to_integers
from repquant.qat.quantizers import WEIGHT_SCALES, ActivationQuantizer, WeightQuantizer
from repquant.simulation.integers import quantize_parameters, weight_grid
from repquant.simulation.layers import weight_scheme

SCHEME = Scheme(bits=4, narrow=True, channel_axis=0)


@pytest.mark.parametrize("scales", WEIGHT_SCALES)
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize(
    "layer",
    [nn.Conv1d(4, 6, 3), nn.Conv2d(4, 6, 3, groups=2), nn.ConvTranspose2d(4, 6, 2, groups=2), nn.Linear(4, 6)],
    ids=lambda layer: type(layer).__name__,
)
def test_kernels_and_biases_are_rounded_as_they_are_served(layer, per_channel, scales):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(layer.weight.shape, generator=generator, requires_grad=True)
    bias = torch.randn(6, generator=generator, requires_grad=True)
    scheme = weight_scheme(layer, replace(SCHEME, channel_axis=0 if per_channel else None))
    input_scale = torch.tensor(0.01)
    grid = weight_grid(weight, bias, input_scale, scheme)
    quantizer = WeightQuantizer(scheme, scales, grid)
    rounded, rounded_bias = quantizer(weight, bias, input_scale)
    expected = quantize_parameters(weight, bias, input_scale, grid, getattr(layer, "groups", 1))
    assert torch.equal(rounded, expected.float_weight())
    assert torch.allclose(rounded_bias, expected.float_bias(), rtol=1e-6, atol=0)
    (rounded.sum() + 2 * rounded_bias.sum()).backward()
    assert torch.equal(weight.grad, torch.ones_like(weight))  # the largest is on the grid too
    assert torch.equal(bias.grad, torch.full((6,), 2.0))
    if scales == "learned":
        assert quantizer.scale.grad.shape == grid.scale.shape
        assert quantizer.scale.grad.any()


def test_a_learned_scale_stays_large_enough_for_the_bias():
    layer = nn.ConvTranspose2d(2, 4, 2, groups=2)
    scheme = weight_scheme(layer, SCHEME)
    weight, bias = layer.weight.detach(), torch.tensor([0.0, 0.0, 1.0, 0.0])
    input_scale = torch.tensor(1e-9)
    quantizer = WeightQuantizer(scheme, "learned", weight_grid(weight, bias, input_scale, scheme))
    with torch.no_grad():
        quantizer.scale.fill_(1e-3)
    grid = quantizer.grid(weight, bias, input_scale)
    # The bias of 1 belongs to the first channel of the second group: it must fit 2^30 steps of 1e-9 times the scale.
    assert grid.scale.tolist() == pytest.approx([1 / (1e-9 * (2**30 - 1)), 1e-3])


def test_an_activation_is_rounded_unless_it_is_switched_off():
    grid = grid_for_range(-1.0, 3.0, Scheme(bits=8, signed=False, symmetric=False))
    x = torch.linspace(-2, 4, 50).reshape(2, 25)
    quantizer = ActivationQuantizer(grid, learned=True)
    assert torch.allclose(quantizer(x), dequantize(to_integers(x, grid), grid), atol=1e-6)
    quantizer.enabled = False
    assert torch.equal(quantizer(x), x)
    quantizer(x).sum().backward()
    assert float(quantizer.scale.grad) == 0.0
