import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from repquant.errors import InputError
from repquant.numerics.affine import INT32_MAX, Grid, Scheme, grid_for_range
from repquant.simulation.integers import IntegerParameters, quantize_parameters, weight_grid

PER_CHANNEL = Scheme(narrow=True, channel_axis=0)
PER_TENSOR = Scheme(narrow=True)


def to_integers(
    weight: torch.Tensor, bias: torch.Tensor | None, input_scale: torch.Tensor, scheme: Scheme
) -> IntegerParameters:
    return quantize_parameters(weight, bias, input_scale, weight_grid(weight, bias, input_scale, scheme))


def test_hand_computed_layer():
    weight = torch.tensor([[1.27, -0.635], [0.254, 0.1]])
    bias = torch.tensor([0.05, -0.0101])
    integers = to_integers(weight, bias, torch.tensor(0.1), PER_CHANNEL)
    assert integers.weight.tolist() == [[127, -64], [127, 50]]  # 63.5 is even-rounded to 64
    assert integers.weight.dtype == torch.int8
    # Steps of the accumulator: 0.1 * 0.01 and 0.1 * 0.002.
    assert integers.bias.tolist() == [50, -50]
    assert integers.bias.dtype == torch.int32
    assert integers.float_bias().tolist() == pytest.approx([0.05, -0.01])


def test_per_tensor_has_one_scale():
    integers = to_integers(torch.tensor([[1.27], [0.0127]]), None, torch.tensor(1.0), PER_TENSOR)
    assert integers.weight.tolist() == [[127], [1]]
    assert integers.weight_grid.scale.shape == ()
    assert integers.bias is None
    assert integers.float_bias() is None


@pytest.mark.parametrize("scheme", [PER_CHANNEL, PER_TENSOR])
def test_a_bias_beyond_32_bits_enlarges_the_scale(scheme):
    weight, bias = torch.full((2, 3), 1e-12), torch.tensor([3.0, -5.0])
    integers = to_integers(weight, bias, torch.tensor(1e-3), scheme)
    assert integers.bias.abs().max() <= INT32_MAX // 2 + 256
    assert integers.float_bias().tolist() == pytest.approx([3.0, -5.0], rel=1e-6)


def test_dead_channel_keeps_its_bias():
    integers = to_integers(torch.zeros(2, 3), torch.tensor([0.5, 0.0]), torch.tensor(0.02), PER_CHANNEL)
    assert integers.weight.count_nonzero() == 0
    assert integers.float_bias().tolist() == pytest.approx([0.5, 0.0], abs=1e-4)


@given(seed=st.integers(0, 999), spread=st.floats(1e-4, 1e4), bits=st.integers(2, 8))
def test_every_value_is_within_half_a_step(seed, spread, bits):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, 3, 3, 3, generator=generator) * spread
    bias = torch.randn(4, generator=generator)
    scheme = Scheme(bits=bits, narrow=True, channel_axis=0)
    integers = to_integers(weight, bias, torch.tensor(0.01), scheme)
    step = integers.weight_grid.scale.reshape(-1, 1, 1, 1)
    assert ((integers.float_weight() - weight).abs() <= step * 0.501).all()
    assert ((integers.float_bias() - bias).abs() <= integers.bias_scale * 0.501 + 1e-6).all()
    assert integers.weight.abs().max() <= scheme.qmax


def test_a_given_grid_is_kept_even_where_no_weight_reaches_its_end():
    weight = torch.tensor([[0.03, -0.02]])
    grid = Grid(torch.tensor([0.01]), torch.tensor([0], dtype=torch.int32), PER_CHANNEL)
    assert quantize_parameters(weight, None, torch.tensor(0.1), grid).weight.tolist() == [[3, -2]]


def test_a_bias_that_does_not_fit_a_given_grid():
    grid = Grid(torch.tensor([1e-9]), torch.tensor([0], dtype=torch.int32), PER_CHANNEL)
    with pytest.raises(InputError, match="32 bits"):
        quantize_parameters(torch.zeros(1, 2), torch.tensor([1e3]), torch.tensor(1e-3), grid)


def test_biases_have_the_precision_of_half_scales():
    scheme = Scheme(narrow=True, channel_axis=0, scale_type="float16")
    bias, scale = torch.tensor([1.0001, -300.3]), torch.tensor(0.01).half().float()
    grid = grid_for_range(torch.tensor([-1.0, -1.0]), torch.tensor([1.0, 1.0]), scheme)
    integers = quantize_parameters(torch.zeros(2, 1), bias, scale, grid)
    error = integers.float_bias() - bias.half().float()
    assert (error.abs() <= integers.bias_scale / 2 * 1.001).all()
    with pytest.raises(InputError, match=r"a bias of 7e\+04 does not fit FP16"):
        quantize_parameters(torch.zeros(2, 1), torch.tensor([70000.0, 0.0]), scale, grid)
