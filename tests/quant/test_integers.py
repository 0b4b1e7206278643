import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from repquant.numerics.affine import INT32_MAX, Scheme
from repquant.quant.integers import quantize_parameters

PER_CHANNEL = Scheme(narrow=True, channel_axis=0)
PER_TENSOR = Scheme(narrow=True)


def test_hand_computed_layer():
    weight = torch.tensor([[1.27, -0.635], [0.254, 0.1]])
    bias = torch.tensor([0.05, -0.0101])
    integers = quantize_parameters(weight, bias, torch.tensor(0.1), PER_CHANNEL)
    assert integers.weight.tolist() == [[127, -64], [127, 50]]  # 63.5 is even-rounded to 64
    assert integers.weight.dtype == torch.int8
    # Steps of the accumulator: 0.1 * 0.01 and 0.1 * 0.002.
    assert integers.bias.tolist() == [50, -50]
    assert integers.bias.dtype == torch.int32
    assert integers.float_bias().tolist() == pytest.approx([0.05, -0.01])


def test_per_tensor_has_one_scale():
    integers = quantize_parameters(torch.tensor([[1.27], [0.0127]]), None, torch.tensor(1.0), PER_TENSOR)
    assert integers.weight.tolist() == [[127], [1]]
    assert integers.weight_grid.scale.shape == ()
    assert integers.bias is None
    assert integers.float_bias() is None


@pytest.mark.parametrize("scheme", [PER_CHANNEL, PER_TENSOR])
def test_a_bias_beyond_32_bits_enlarges_the_scale(scheme):
    weight, bias = torch.full((2, 3), 1e-12), torch.tensor([3.0, -5.0])
    integers = quantize_parameters(weight, bias, torch.tensor(1e-3), scheme)
    assert integers.bias.abs().max() <= INT32_MAX // 2 + 256
    assert integers.float_bias().tolist() == pytest.approx([3.0, -5.0], rel=1e-6)


def test_dead_channel_keeps_its_bias():
    integers = quantize_parameters(torch.zeros(2, 3), torch.tensor([0.5, 0.0]), torch.tensor(0.02), PER_CHANNEL)
    assert integers.weight.count_nonzero() == 0
    assert integers.float_bias().tolist() == pytest.approx([0.5, 0.0], abs=1e-4)


@given(seed=st.integers(0, 999), spread=st.floats(1e-4, 1e4), bits=st.integers(2, 8))
def test_every_value_is_within_half_a_step(seed, spread, bits):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, 3, 3, 3, generator=generator) * spread
    bias = torch.randn(4, generator=generator)
    scheme = Scheme(bits=bits, narrow=True, channel_axis=0)
    integers = quantize_parameters(weight, bias, torch.tensor(0.01), scheme)
    step = integers.weight_grid.scale.reshape(-1, 1, 1, 1)
    assert ((integers.float_weight() - weight).abs() <= step * 0.501).all()
    assert ((integers.float_bias() - bias).abs() <= integers.bias_scale * 0.501 + 1e-6).all()
    assert integers.weight.abs().max() <= scheme.qmax
