from math import inf, log10, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from repquant.evaluate.compare import STEP_EDGES, fidelity, paired_drop, parity
from repquant.evaluate.predictions import OutputDifference

pairs = st.integers(1, 60).flatmap(lambda n: st.tuples(arrays(np.bool_, n), arrays(np.bool_, n)))


def table(both: int, lost: int, gained: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Correctness of the float model and of the other one, from the cells of their 2 x 2 table."""
    float_correct = [True] * (both + lost) + [False] * (gained + neither)
    correct = [True] * both + [False] * lost + [True] * gained + [False] * neither
    return np.array(float_correct), np.array(correct)


def difference(**changes) -> OutputDifference:
    values = {
        "same_top1": np.array([True, True, True, False]),
        "kl": np.array([0.0, 0.01, 0.02, 0.05]),
        "signal": 1000.0,
        "noise": 1.0,
        "largest": np.array([0.5, 0.0, 0.001, 0.2]),
        "reference_largest": 12.7,
    }
    return OutputDifference(**(values | changes))


def test_drop_by_hand():
    # b = 10, c = 4, N = 100, so with half an image in each cell: (b - c) / (N + 2) = 6/102 and
    # standard error sqrt(10.5 + 4.5 - 6^2/102) / 102 = sqrt(14.64706) / 102 = 0.0375207.
    drop = paired_drop(*table(both=70, lost=10, gained=4, neither=16))
    assert drop.points == pytest.approx(6.0)
    assert drop.ci95 == pytest.approx((5.88235 - 1.959964 * 3.75207, 5.88235 + 1.959964 * 3.75207), abs=1e-4)


def test_drop_is_the_adjusted_wald_interval_cell_by_cell():
    # The textbook form of the same thing, on the table with 0.5 added to each cell.
    both, lost, gained, neither = 31.5, 7.5, 2.5, 9.5
    total = both + lost + gained + neither
    p_lost, p_gained = lost / total, gained / total
    middle = p_lost - p_gained
    half = 1.959964 * sqrt((p_lost + p_gained - middle**2) / total)
    drop = paired_drop(*table(31, 7, 2, 9))
    assert drop.ci95 == pytest.approx((100 * (middle - half), 100 * (middle + half)), abs=1e-5)


def test_interval_is_not_degenerate_when_nothing_disagrees():
    drop = paired_drop(*table(both=3400, lost=0, gained=0, neither=525))
    assert drop.points == 0
    # sqrt(0.5 + 0.5) / 3927, that is a twentieth of a point: two images
    assert drop.ci95 == pytest.approx((-100 * 1.959964 / 3927, 100 * 1.959964 / 3927), abs=1e-6)


def test_gain_is_a_negative_drop():
    assert paired_drop(*table(1, 0, 1, 2)).points == -25.0


def test_interval_stays_within_a_hundred_points():
    low, high = paired_drop(*table(0, 1, 0, 0)).ci95
    assert -100 <= low < high == 100


@given(pairs)
def test_drop_is_the_difference_of_accuracies_and_turns_its_sign(pair):
    float_correct, correct = pair
    drop, opposite = paired_drop(float_correct, correct), paired_drop(correct, float_correct)
    assert drop.points == pytest.approx(100 * (float_correct.mean() - correct.mean()))
    assert opposite.points == -drop.points
    assert opposite.ci95 == pytest.approx((-drop.ci95[1], -drop.ci95[0]))
    assert drop.ci95[0] < drop.points < drop.ci95[1] or abs(drop.points) == 100


def test_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    cells = np.array([0.83, 0.025, 0.015, 0.13])
    covered = 0
    for both, lost, gained, neither in rng.multinomial(400, cells, size=1000):
        low, high = paired_drop(*table(both, lost, gained, neither)).ci95
        covered += low <= 1.0 <= high
    assert 930 <= covered <= 985


@pytest.mark.parametrize(("first", "second"), [(3, 2), (0, 0)])
def test_images_that_do_not_pair(first, second):
    with pytest.raises(ValueError, match=f"can't pair {first} images with {second}"):
        paired_drop(np.ones(first, bool), np.ones(second, bool))


def test_fidelity():
    close = fidelity(difference())
    assert close.agreement == 75.0
    assert close.kl == pytest.approx(0.02)
    assert close.sqnr_db == pytest.approx(30.0)


@pytest.mark.parametrize(
    ("signal", "noise", "decibel"), [(1.0, 2.0, 10 * log10(0.5)), (1.0, 0.0, inf), (0.0, 0.0, inf), (0.0, 1.0, -inf)]
)
def test_sqnr_at_its_ends(signal, noise, decibel):
    assert fidelity(difference(signal=signal, noise=noise)).sqnr_db == pytest.approx(decibel)


@pytest.mark.parametrize(("largest", "reference", "steps"), [(0.5, 12.7, 5.0), (0.0, 0.0, 0.0), (0.1, 0.0, inf)])
def test_parity_counts_in_steps_of_8_bit_logits(largest, reference, steps):
    same = parity(difference(largest=np.array([0.0, largest]), reference_largest=reference))
    assert same.same_top1 == 75.0
    assert same.max_logit_steps == pytest.approx(steps)
    bins = {0.0: (2, 0, 0, 0, 0, 0, 0, 0, 0), 5.0: (1, 0, 0, 0, 0, 0, 0, 1, 0), inf: (1, 0, 0, 0, 0, 0, 0, 0, 1)}
    assert same.step_counts == bins[steps]


def test_the_upper_end_of_a_bin_belongs_to_it():
    ends = np.array(STEP_EDGES)
    assert parity(difference(largest=ends, reference_largest=127.0)).step_counts == (1, 1, 1, 1, 1, 1, 1, 1, 0)
    assert parity(difference(largest=ends * 1.001, reference_largest=127.0)).step_counts == (1, 0, 1, 1, 1, 1, 1, 1, 1)
