from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repquant.evaluate.accuracy import accuracy, wilson_interval
from repquant.evaluate.predictions import Predictions


def predictions(correct, in_top5):
    return Predictions(
        top1=np.zeros(len(correct), np.int64),
        probability=np.ones(len(correct)),
        correct=np.array(correct),
        in_top5=in_top5,
    )


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),  # z^2 / (n + z^2)
        (10, 10, 0.7225, 1.0),
        (1, 29, 0.0061, 0.1718),  # Newcombe, Statistics in Medicine 17 (1998), table I
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
    ],
)
def test_wilson_interval_as_published(successes, trials, low, high):
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 10**6).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_holds_the_proportion_and_mirrors(case):
    successes, trials = case
    low, high = wilson_interval(successes, trials)
    rounding = 1e-12
    assert 0 <= low < high <= 1
    assert low - rounding <= successes / trials <= high + rounding
    assert wilson_interval(trials - successes, trials) == pytest.approx((1 - high, 1 - low), abs=rounding)


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (3, 2), (-1, 2)])
def test_no_proportion(successes, trials):
    with pytest.raises(ValueError, match=f"{successes} successes in {trials} trials is no proportion"):
        wilson_interval(successes, trials)


def test_accuracy_in_percent():
    result = accuracy(predictions([True, False, True, True], np.array([True, True, True, True])))
    assert (result.top1, result.top5, result.images) == (75.0, 100.0, 4)
    assert result.top1_ci95 == pytest.approx(tuple(100 * end for end in wilson_interval(3, 4)))


def test_accuracy_without_top5_or_labels():
    assert accuracy(predictions([True, False], None)).top5 is None
    assert accuracy(replace(predictions([True] * 3, None), correct=None)) is None
