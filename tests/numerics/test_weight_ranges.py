"""The search for all channels at once against a loop over one channel."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from repquant.numerics.affine import Scheme, channel_range, fake_quantize, grid_for_range
from repquant.numerics.weight_ranges import least_squares_amax


def weights(seed, tail=1.0, channels=3):
    """Weights with some that stand out by a factor."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(channels, 4, 3, 3, generator=generator)
    weight[:, 0, 0, 0] *= tail
    return weight


def squared_error(weight, amax, scheme):
    grid = grid_for_range(-amax, amax, scheme)
    return (fake_quantize(weight, grid) - weight).double().square().flatten(1).sum(1)


def largest(weight, scheme):
    low, high = channel_range(weight, scheme)
    return torch.maximum(-low, high).double()


def by_hand(channel, amax, qmax):
    step = amax / qmax
    rounded = [max(-qmax, min(qmax, round(w / step))) * step for w in channel.flatten().tolist()]
    return sum((r - w) ** 2 for r, w in zip(rounded, channel.flatten().tolist(), strict=True))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_one_channel_by_hand(bits):
    weight, scheme = weights(0, tail=3.0), Scheme(bits=bits, narrow=True, channel_axis=0)
    found = least_squares_amax(weight, torch.zeros(3), scheme)
    for channel, amax in zip(weight, found, strict=True):
        candidates = channel.abs().max().item() * torch.arange(64, 0, -1, dtype=torch.float64) / 64
        errors = [by_hand(channel, amax, scheme.qmax) for amax in candidates.tolist()]
        assert amax.item() == pytest.approx(candidates[errors.index(min(errors))].item(), rel=1e-6)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 999), tail=st.floats(0.1, 100), bits=st.integers(2, 8), floor=st.floats(0, 2))
def test_never_worse_than_max_and_never_below_the_floor(seed, tail, bits, floor):
    weight, scheme = weights(seed, tail), Scheme(bits=bits, narrow=True, channel_axis=0)
    at_least = torch.tensor([0.0, floor, 50.0])
    found = least_squares_amax(weight, at_least, scheme)
    assert (found >= at_least).all()
    reference = torch.maximum(largest(weight, scheme), at_least)
    assert (found <= reference).all()
    worst = squared_error(weight, reference, scheme)
    assert (squared_error(weight, found, scheme) <= worst * (1 + 1e-5)).all()


def test_few_bits_clip_and_eight_hardly_do():
    weight, zeros = weights(1, channels=16), torch.zeros(16)
    shrunk = {}
    for bits in (3, 8):
        scheme = Scheme(bits=bits, narrow=True, channel_axis=0)
        shrunk[bits] = float((least_squares_amax(weight, zeros, scheme) / largest(weight, scheme)).mean())
    assert shrunk[3] < 0.8
    assert shrunk[8] > 0.95


def test_one_range_for_the_tensor():
    weight, scheme = weights(2, tail=2.0), Scheme(bits=4, narrow=True)
    found = least_squares_amax(weight, torch.tensor(0.0), scheme)
    assert found.shape == ()
    assert 0 < found < weight.abs().max()
    assert least_squares_amax(weight, weight.abs().max(), scheme) == weight.abs().max()


def test_channels_of_zeros_and_of_one_value():
    weight = torch.zeros(2, 1, 3, 3)
    weight[1] = -0.25
    found = least_squares_amax(weight, torch.zeros(2), Scheme(bits=4, narrow=True, channel_axis=0))
    assert found.tolist() == [0.0, 0.25]
