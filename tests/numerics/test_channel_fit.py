import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from repquant.numerics.channel_fit import GAINS, ChannelFit


def outputs(rows=64, channels=3, seed=0):
    return torch.randn(rows, channels, generator=torch.Generator().manual_seed(seed))


def fitted(given, wanted, samples, parts=1):
    fit = ChannelFit(samples)
    for one, other in zip(given.chunk(parts), wanted.chunk(parts), strict=True):
        fit.update(one, other, torch.ones(len(one)))
    return fit


def test_a_factor_is_found_whatever_the_shift():
    wanted = outputs()
    given = wanted / torch.tensor([0.8, 1.0, 1.25]) + torch.tensor([5.0, 0.0, -3.0])
    assert torch.allclose(fitted(given, wanted, 64).gains(central=True), torch.tensor([0.8, 1.0, 1.25]), atol=1e-5)


def test_without_a_bias_the_mean_counts_as_well():
    wanted = outputs() + 3
    given = outputs() / 2 + 3
    gains = fitted(given, wanted, 10_000).gains(central=False)
    assert (gains > 1).all()
    assert (gains < 1.2).all()


def test_noise_of_what_is_given_does_not_make_the_factor_smaller():
    wanted = outputs(rows=100_000, channels=1)
    noise = outputs(rows=100_000, channels=1, seed=1)
    given = 0.8 * wanted + 0.2 * noise
    assert fitted(given, wanted, 100_000).gains(central=True).item() == pytest.approx(1.25, rel=0.01)


def test_what_may_be_chance_is_no_factor():
    wanted = outputs(rows=16)
    given = wanted + 0.2 * outputs(rows=16, seed=1)
    assert not torch.equal(fitted(given, wanted, 10_000).gains(central=True), torch.ones(3))
    assert torch.equal(fitted(given, wanted, 4).gains(central=True), torch.ones(3))


@pytest.mark.parametrize("samples", [1, 2])
def test_one_or_two_samples_say_nothing(samples):
    wanted = outputs(rows=samples)
    assert torch.equal(fitted(wanted / 2, wanted, samples).gains(central=True), torch.ones(3))


def test_one_factor_for_all_channels():
    wanted = outputs()
    assert fitted(wanted / 1.5, wanted, 64).gains(central=True, pooled=True).item() == pytest.approx(1.5)


@pytest.mark.parametrize(("given", "wanted"), [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0)])
def test_channels_that_do_not_vary_keep_their_size(given, wanted):
    values = outputs()
    assert torch.equal(fitted(given * values, wanted * values, 64).gains(central=True), torch.ones(3))


@pytest.mark.parametrize("sign", [-1.0, 0.0])
def test_outputs_that_do_not_follow_keep_their_size(sign):
    wanted = outputs(rows=1000)
    given = sign * wanted + outputs(rows=1000, seed=1)
    assert torch.allclose(fitted(given, wanted, 1000).gains(central=True), torch.ones(3))


def test_what_is_mostly_noise_is_not_amplified():
    wanted = outputs(rows=1000)
    given = 0.6 * wanted + 0.4 * outputs(rows=1000, seed=1)
    assert torch.equal(fitted(given, wanted, 1000).gains(central=True), torch.ones(3))


def test_rows_count_as_their_weights_say():
    wanted = outputs()
    loud = 30 * outputs(seed=1)
    for weight, factor in ((1.0, 2.0), (0.0, 1.25)):
        fit = ChannelFit(128)
        fit.update(wanted / 1.25, wanted, torch.ones(64))
        fit.update(loud / 2, loud, torch.full((64,), weight))
        assert torch.allclose(fit.gains(central=True), torch.full((3,), factor), rtol=0.01)


def test_nothing_seen():
    assert ChannelFit(8).gains(central=True).item() == 1.0


@given(st.floats(1e-3, 1e3), st.integers(1, 8))
def test_parts_make_the_whole_and_factors_have_limits(factor, parts):
    wanted = outputs()
    gains = fitted(wanted / factor, wanted, 64, parts).gains(central=True)
    assert torch.allclose(gains, torch.full((3,), factor).clamp(*GAINS), rtol=1e-4)
