import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from repquant.evaluate.predictions import OutputDifference, Predictions, label_ranks

# Few distinct values, so that ties are common.
tied_logits = arrays(np.float32, (5, 7), elements=st.sampled_from([-1.0, 0.0, 0.5, 2.0]))
some_labels = arrays(np.int64, 5, elements=st.integers(0, 6))


def logits_of(*rows: list[float]) -> np.ndarray:
    return np.array(rows, np.float32)


def test_top1_and_top5_by_hand():
    logits = logits_of([9, 8, 7, 6, 5, 4], [9, 8, 7, 6, 5, 4], [4, 5, 6, 7, 8, 9])
    predictions = Predictions.of(logits, np.array([4, 5, 5]))
    assert predictions.top1.tolist() == [0, 0, 5]
    assert predictions.correct.tolist() == [False, False, True]
    assert predictions.in_top5.tolist() == [True, False, True]
    assert predictions.images == 3


def test_five_classes_have_no_top5():
    assert Predictions.of(np.zeros((2, 5), np.float32), np.array([0, 1])).in_top5 is None
    assert Predictions.of(np.zeros((2, 6), np.float32), np.array([0, 1])).in_top5 is not None


def test_without_labels_only_the_class_is_known():
    predictions = Predictions.of(logits_of([0, 1], [1, 0]), None)
    assert predictions.top1.tolist() == [1, 0]
    assert predictions.probability == pytest.approx([np.e / (1 + np.e)] * 2)
    assert predictions.correct is None
    assert predictions.in_top5 is None


@given(tied_logits, some_labels)
def test_ranks_are_those_of_a_stable_sort(logits, labels):
    order = np.argsort(-logits, axis=1, kind="stable")
    expected = [list(row).index(label) for row, label in zip(order, labels, strict=True)]
    assert label_ranks(logits, labels).tolist() == expected


@given(tied_logits, some_labels)
def test_a_correct_image_is_one_of_rank_zero(logits, labels):
    predictions = Predictions.of(logits, labels)
    assert predictions.correct.tolist() == (label_ranks(logits, labels) == 0).tolist()


@given(tied_logits, tied_logits, some_labels, st.integers(1, 4))
def test_parts_join_to_the_whole(logits, other, labels, cut):
    whole = Predictions.of(logits, labels)
    joined = Predictions.concatenate([Predictions.of(logits[s], labels[s]) for s in (slice(cut), slice(cut, None))])
    for name in ("top1", "probability", "correct", "in_top5"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(whole, name))

    whole = OutputDifference.between(logits, other)
    joined = OutputDifference.concatenate(
        [OutputDifference.between(logits[s], other[s]) for s in (slice(cut), slice(cut, None))]
    )
    for name in ("same_top1", "kl", "signal", "noise", "largest", "reference_largest"):
        np.testing.assert_allclose(getattr(joined, name), getattr(whole, name))


def test_half_labeled_parts_are_refused():
    logits = np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match="1 of 2 parts have labels"):
        Predictions.concatenate([Predictions.of(logits, np.array([0, 1])), Predictions.of(logits, None)])


def test_difference_by_hand():
    difference = OutputDifference.between(logits_of([3, -4], [0, 1]), logits_of([3, -2], [1, 0]))
    assert difference.same_top1.tolist() == [True, False]
    assert difference.signal == 9 + 16 + 1
    assert difference.noise == 4 + 1 + 1
    assert difference.largest.tolist() == [2, 1]
    assert difference.reference_largest == 4
    # The second image: softmax (1, e)/(1+e) against (e, 1)/(1+e).
    p = np.array([1, np.e]) / (1 + np.e)
    assert difference.kl[1] == pytest.approx((p * np.log(p / p[::-1])).sum())


@given(tied_logits)
def test_equal_logits_do_not_differ(logits):
    difference = OutputDifference.between(logits, logits)
    assert difference.same_top1.all()
    assert not difference.kl.any()
    assert difference.noise == 0
    assert not difference.largest.any()
