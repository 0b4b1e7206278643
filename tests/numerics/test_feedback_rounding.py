import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from repquant.numerics.feedback_rounding import FeedbackRounding


def error(weight, integers, moments, scale):
    difference = (weight - integers * scale.unsqueeze(1)).double()
    return ((difference @ moments.double()) * difference).sum(1)


def round_with_feedback(weight, moments, scale, qmin, qmax):
    return FeedbackRounding(moments).round(weight, scale, qmin, qmax)


def correlated_problem(seed=0, rows=6, columns=100):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.rand(columns, columns, generator=generator)
    inputs = torch.randn(400, columns, generator=generator) @ mixing
    weight = torch.randn(rows, columns, generator=generator)
    return weight, inputs.T @ inputs / len(inputs), weight.abs().amax(1) / 7


def test_uncorrelated_inputs_leave_nothing_to_feed_back():
    weight, _, scale = correlated_problem()
    integers = round_with_feedback(weight, torch.eye(100), scale, -7, 7)
    assert torch.equal(integers, torch.round(weight / scale.unsqueeze(1)))


def test_two_equal_inputs_share_the_error():
    # Each weight alone rounds down and loses 0.4; together they lose 0.8, and one rounded up makes that -0.2.
    weight, moments = torch.tensor([[0.4, 0.4]]), torch.ones(2, 2)
    integers = round_with_feedback(weight, moments, torch.ones(1), -7, 7)
    assert sorted(integers[0].tolist()) == [0.0, 1.0]


def test_half_of_the_error_of_the_nearest_integers_is_a_modest_demand():
    weight, moments, scale = correlated_problem()
    nearest = torch.round(weight / scale.unsqueeze(1))
    integers = round_with_feedback(weight, moments, scale, -7, 7)
    assert (error(weight, integers, moments, scale) < 0.5 * error(weight, nearest, moments, scale)).all()


def test_close_to_the_best_of_all_integers():
    weight, moments, scale = correlated_problem(columns=5)
    floor = torch.floor(weight / scale.unsqueeze(1))
    candidates = [floor + torch.tensor(steps) for steps in itertools.product((-1.0, 0.0, 1.0, 2.0), repeat=5)]
    best = torch.stack([error(weight, candidate, moments, scale) for candidate in candidates]).amin(0)
    nearest = error(weight, torch.round(weight / scale.unsqueeze(1)), moments, scale)
    found = error(weight, round_with_feedback(weight, moments, scale, -8, 8), moments, scale)
    assert (found.sum() - best.sum()) < 0.3 * (nearest.sum() - best.sum())


@pytest.mark.parametrize("damping", [0.01, 0.1])
def test_losses_have_a_tenth_of_the_damping(damping):
    weight, moments, scale = correlated_problem()
    rounding = FeedbackRounding(moments, damping)
    integers = rounding.round(weight, scale, -7, 7)
    noise = damping / 10 * moments.diagonal().mean() * torch.eye(100)
    assert torch.allclose(
        rounding.loss(weight, integers, scale), error(weight, integers, moments + noise, scale), rtol=1e-3
    )


@settings(deadline=None)
@given(seed=st.integers(0, 999), columns=st.integers(1, 130), bits=st.integers(2, 8), dead=st.booleans())
def test_integers_stay_on_the_grid(seed, columns, bits, dead):
    weight, moments, _ = correlated_problem(seed, rows=3, columns=columns)
    if dead:
        moments[:] = 0.0
    qmax = 2 ** (bits - 1) - 1
    integers = round_with_feedback(weight, moments, weight.abs().amax(1) / qmax, -qmax, qmax)
    assert torch.equal(integers, integers.round())
    assert integers.abs().max() <= qmax


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inputs_that_never_vary(dtype):
    weight, moments, scale = correlated_problem()
    moments[10:20] = 0
    moments[:, 10:20] = 0
    integers = round_with_feedback(weight.to(dtype), moments, scale, -7, 7)
    assert integers.dtype == dtype
    assert integers.isfinite().all()


def test_moments_that_are_singular_beyond_the_damping():
    """In float32, those of many identical channels have eigenvalues below 0."""
    weight, scale = torch.tensor([[0.4, 0.4, 0.4]]), torch.ones(1)
    integers = round_with_feedback(weight, torch.ones(3, 3) - 0.1 * torch.eye(3), scale, -7, 7)
    assert set(integers[0].tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_moments_that_are_no_numbers(value):
    with pytest.raises(FloatingPointError, match="inputs of a layer are not finite"):
        round_with_feedback(torch.ones(1, 2), torch.full((2, 2), value), torch.ones(1), -7, 7)
