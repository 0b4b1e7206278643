import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from repquant.errors import InputError
from repquant.numerics.affine import (
    Grid,
    Scheme,
    channel_range,
    dequantize,
    fake_quantize,
    grid_for_range,
    stored_scale,
    to_integers,
)

SCHEMES = st.builds(
    Scheme,
    bits=st.integers(2, 8),
    signed=st.just(True),
    symmetric=st.booleans(),
    narrow=st.booleans(),
) | st.builds(Scheme, bits=st.integers(2, 8), signed=st.just(False), symmetric=st.just(False))

FINITE = st.floats(-1e4, 1e4, width=32)


def tensors(max_dims=3):
    return hnp.arrays("float32", hnp.array_shapes(max_dims=max_dims, max_side=6), elements=FINITE).map(torch.from_numpy)


@pytest.mark.parametrize(
    ("scheme", "ends"),
    [
        (Scheme(), (-128, 127)),
        (Scheme(narrow=True), (-127, 127)),
        (Scheme(signed=False), (0, 255)),
        (Scheme(bits=7, narrow=True), (-63, 63)),
        (Scheme(bits=4), (-8, 7)),
        (Scheme(bits=2, signed=False), (0, 3)),
    ],
)
def test_integers_of_a_scheme(scheme, ends):
    assert (scheme.qmin, scheme.qmax) == ends


@pytest.mark.parametrize("bits", [1, 9, 0, -8])
def test_bits_out_of_range(bits):
    with pytest.raises(InputError, match=rf"{bits} bits.*2 to 8"):
        Scheme(bits=bits)


def test_narrow_unsigned_is_refused():
    with pytest.raises(InputError, match="signed"):
        Scheme(signed=False, narrow=True)


def test_hand_computed_symmetric_int8():
    grid = grid_for_range(-1.0, 12.7, Scheme())
    assert grid.scale.item() == pytest.approx(0.1)
    assert grid.zero_point.item() == 0
    x = torch.tensor([0.0, 0.04, 0.06, 1.26, 12.7, 99.0, -12.75, -99.0])
    assert to_integers(x, grid).tolist() == [0, 0, 1, 13, 127, 127, -128, -128]


def test_halves_round_to_even():
    grid = Grid(torch.tensor(1.0), torch.tensor(0, dtype=torch.int32), Scheme())
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 127.5])
    assert to_integers(x, grid).tolist() == [0, 2, 2, 0, -2, 126, 127]


def test_hand_computed_asymmetric_uint8():
    grid = grid_for_range(-1.0, 4.1, Scheme(signed=False, symmetric=False))
    assert grid.scale.item() == pytest.approx(0.02)
    assert grid.zero_point.item() == 50
    x = torch.tensor([-1.0, 0.0, 4.1, -2.0, 5.0, 0.03])
    assert to_integers(x, grid).tolist() == [0, 50, 255, 0, 255, 52]


def test_hand_computed_per_channel():
    weight = torch.tensor([[1.27, -0.5], [0.0, -2.54]])
    scheme = Scheme(channel_axis=0, narrow=True)
    grid = grid_for_range(*channel_range(weight, scheme), scheme)
    assert grid.scale.tolist() == pytest.approx([0.01, 0.02])
    assert to_integers(weight, grid).tolist() == [[127, -50], [0, -127]]


def test_range_of_zeros_keeps_zero_exact():
    for scheme in (Scheme(), Scheme(signed=False, symmetric=False)):
        grid = grid_for_range(0.0, 0.0, scheme)
        assert grid.scale > 0
        assert fake_quantize(torch.zeros(3), grid).tolist() == [0.0, 0.0, 0.0]


def test_one_sided_range_is_widened_to_zero():
    grid = grid_for_range(2.0, 5.1, Scheme(signed=False, symmetric=False))
    assert grid.zero_point.item() == 0
    assert grid.scale.item() == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [(float("nan"), 1.0, "NaN"), (0.0, float("inf"), "infinite"), (2.0, 1.0, "lower end above")],
)
def test_impossible_ranges(low, high, message):
    with pytest.raises(InputError, match=message):
        grid_for_range(low, high, Scheme())


def test_unsigned_symmetric_refuses_negative_values():
    with pytest.raises(InputError, match="asymmetric"):
        grid_for_range(-1.0, 1.0, Scheme(signed=False))


@given(x=tensors(), scheme=SCHEMES, low=st.floats(-100, 0), high=st.floats(0, 100))
def test_equals_torch_bit_for_bit_per_tensor(x, scheme, low, high):
    grid = grid_for_range(low, high, scheme)
    expected = torch.fake_quantize_per_tensor_affine(
        x, grid.scale.item(), int(grid.zero_point), scheme.qmin, scheme.qmax
    )
    assert torch.equal(dequantize(to_integers(x, grid), grid), expected)
    assert torch.equal(fake_quantize(x, grid), expected)


@given(x=tensors(), axis=st.integers(0, 2), bits=st.integers(2, 8))
def test_equals_torch_bit_for_bit_per_channel(x, axis, bits):
    scheme = Scheme(bits=bits, channel_axis=axis % x.dim(), narrow=True)
    grid = grid_for_range(*channel_range(x, scheme), scheme)
    expected = torch.fake_quantize_per_channel_affine(
        x, grid.scale, grid.zero_point, scheme.channel_axis, scheme.qmin, scheme.qmax
    )
    assert torch.equal(dequantize(to_integers(x, grid), grid), expected)
    assert torch.equal(fake_quantize(x, grid), expected)


@given(x=tensors(), scheme=SCHEMES)
def test_fake_quantization_is_idempotent_and_within_half_a_step(x, scheme):
    grid = grid_for_range(x.min(), x.max(), scheme)
    once = fake_quantize(x, grid)
    assert torch.equal(fake_quantize(once, grid), once)
    # A zero point that is rounded shifts the ends by up to half a step.
    slack = 0.5 if scheme.symmetric else 1.0
    assert (once - x).abs().max() <= grid.scale * slack * (1 + 1e-3) + 1e-6


def test_gradient_passes_inside_the_range_and_stops_where_clipped():
    grid = grid_for_range(-1.0, 1.0, Scheme())
    x = torch.tensor([-3.0, -0.5, 0.3, 3.0], requires_grad=True)
    fake_quantize(x, grid).sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 0.0]


HALF = Scheme(scale_type="float16")


def test_hand_computed_half_scale():
    grid = grid_for_range(-1.0, 1.0, HALF)
    assert float(grid.scale) == float(torch.tensor(1 / 127).half())
    assert float(grid.scale) != float(grid_for_range(-1.0, 1.0, Scheme()).scale)


@given(st.floats(2.0**-30, 65000.0, width=32))
def test_half_scales_are_half_positive_and_near(scale):
    given = torch.tensor(scale, requires_grad=True)
    stored = stored_scale(given, HALF)
    assert stored == stored.half().float()
    assert stored > 0
    assert abs(float(stored.detach()) - scale) <= max(scale * 2.0**-11, 2.0**-24)
    stored.backward()
    assert given.grad > 0


def test_float32_scales_are_left_alone():
    scale = torch.rand(5)
    assert stored_scale(scale, Scheme()) is scale


def test_a_scale_that_is_too_large_for_half():
    with pytest.raises(InputError, match=r"a scale of 7.87e\+04 does not fit FP16; store the scales as float32"):
        grid_for_range(-1e7, 1e7, HALF)
