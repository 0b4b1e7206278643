import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from repquant.errors import InputError
from repquant.numerics import histogram as module
from repquant.numerics.histogram import Histogram


def test_hand_computed_counts():
    histogram = Histogram(bins=4)
    histogram.update(torch.tensor([0.0, 0.5, -1.5, 2.5, 4.0]))
    assert histogram.counts.tolist() == [2, 1, 1, 1]
    assert histogram.edges.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert (histogram.minimum, histogram.maximum, histogram.amax) == (-1.5, 4.0, 4.0)


def test_a_larger_value_appends_bins_of_the_same_width():
    histogram = Histogram(bins=4)
    histogram.update(torch.tensor([4.0]))
    histogram.update(torch.tensor([6.5, 1.0]))
    assert histogram.width == 1.0
    assert histogram.counts.tolist() == [0, 1, 0, 1, 0, 0, 1]


def test_a_smaller_batch_keeps_the_bins():
    histogram = Histogram(bins=4)
    histogram.update(torch.tensor([4.0]))
    histogram.update(torch.tensor([0.5]))
    assert histogram.counts.tolist() == [1, 0, 0, 1]


def test_memory_is_bounded_by_merging_pairs():
    histogram = Histogram(bins=4)
    histogram.update(torch.tensor([1.0, 0.3, 0.6]))
    for exponent in range(1, 30):
        histogram.update(torch.tensor([2.0**exponent]))
        assert len(histogram.counts) <= 16
        assert histogram.edges[-1] >= 2.0**exponent
    assert histogram.total == 32


def test_zeros_alone_wait_for_the_first_value():
    histogram = Histogram(bins=4)
    histogram.update(torch.zeros(5))
    assert histogram.width == 0.0
    assert histogram.total == 5
    histogram.update(torch.tensor([2.0]))
    assert histogram.counts.tolist() == [5, 0, 0, 1]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite(bad):
    with pytest.raises(InputError, match="NaN or infinite"):
        Histogram().update(torch.tensor([1.0, bad]))


def test_an_empty_tensor():
    with pytest.raises(InputError, match="empty"):
        Histogram().update(torch.zeros(0))


@pytest.mark.parametrize("bins", [1, 8192])
def test_bins_out_of_range(bins):
    with pytest.raises(InputError, match=f"{bins} bins .* allowed are 2 to 8191"):
        Histogram(bins=bins)


def test_the_most_bins_can_grow_fourfold():
    histogram = Histogram(bins=8191)
    histogram.update(torch.tensor([8191.0]))
    histogram.update(torch.arange(4 * 8191.0 + 1))
    assert len(histogram.counts) == 4 * 8191
    assert histogram.counts[[0, 8190, 8191, -1]].tolist() == [1, 2, 1, 2]  # the first value lies on the last edge


@pytest.mark.parametrize("amax", [1e-36, 1e-38, 1e-42])
def test_values_so_small_that_their_reciprocal_overflows(amax):
    histogram = Histogram()
    histogram.update(torch.tensor([amax, 0.0, -amax / 2]))
    assert histogram.total == 3
    assert histogram.amax == pytest.approx(amax, rel=1e-2)
    assert histogram.edges[-1] >= histogram.amax
    histogram.update(torch.tensor([1.0]))
    assert histogram.total == 4
    assert histogram.edges[-1] >= 1.0


@given(seed=st.integers(0, 2**16), batches=st.integers(1, 4), signed=st.booleans())
def test_equals_numpy_and_does_not_depend_on_chunks(seed, batches, signed):
    generator = torch.Generator().manual_seed(seed)
    data = [torch.randn(7, 13, generator=generator) for _ in range(batches)]
    data = data if signed else [x.relu() for x in data]
    whole, chunked = Histogram(bins=64), Histogram(bins=64)
    original = module._CHUNK
    for x in data:
        whole.update(x)
        try:
            module._CHUNK = 10
            chunked.update(x)
        finally:
            module._CHUNK = original
    assert whole.counts.tolist() == chunked.counts.tolist()
    magnitudes = np.concatenate([x.abs().numpy().ravel() for x in data])
    expected, _ = np.histogram(magnitudes, bins=whole.edges)
    # A value within rounding of an edge may fall on either side of it.
    assert np.abs(np.cumsum(expected) - np.cumsum(whole.counts)).max() <= 1
    assert whole.total == magnitudes.size
    assert whole.amax == pytest.approx(magnitudes.max())


def test_counting_in_inference_mode_leaves_counting_outside_possible():
    module._scratch.cache_clear()
    inside, outside = Histogram(bins=4), Histogram(bins=4)
    with torch.inference_mode():
        inside.update(torch.tensor([1.0, 2.0]))
    outside.update(torch.tensor([1.0, 2.0]))
    assert inside.counts.tolist() == outside.counts.tolist() == [0, 0, 1, 1]
