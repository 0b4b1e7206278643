"""The vectorized searches against loops that spell the definitions out."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from repquant.errors import InputError
from repquant.numerics.affine import Scheme, fake_quantize, grid_for_range
from repquant.numerics.histogram import Histogram
from repquant.numerics.ranges import (
    CALIBRATORS,
    entropy_amax,
    magnitude_levels,
    mse_amax,
    percentile_amax,
    search_range,
)

INT8 = Scheme()
UINT8 = Scheme(signed=False, symmetric=False)


def histogram_of(counts, width=0.01, negative=False):
    histogram = Histogram(bins=len(counts))
    histogram.counts = np.asarray(counts, dtype=np.int64)
    histogram.width = width
    histogram.maximum = len(counts) * width
    histogram.minimum = -histogram.maximum if negative else 0.0
    return histogram


def gaussian(seed=0, bins=300, relu=True):
    x = torch.randn(4000, generator=torch.Generator().manual_seed(seed))
    histogram = Histogram(bins=bins)
    histogram.update(x.relu() if relu else x)
    return histogram


def entropy_by_definition(histogram, levels, first, *, mended=False):
    """pytorch-quantization's entropy calibration, one loop per sentence of its definition."""
    counts = histogram.counts.astype(float)
    counts[0] = counts[1]
    divergences = []
    for kept in range(first, len(counts) + 1):
        reference = counts[:kept].copy()
        reference[-1] += counts[kept:].sum()
        level = np.digitize(range(kept), np.linspace(0, kept, num=levels + 1)) - 1
        candidate = np.zeros(kept)
        for k in range(levels):
            filled = counts[:kept] != 0
            filled[-1] |= mended and counts[kept:].sum() > 0
            inside = (level == k) & filled
            if inside.any():
                candidate[inside] = counts[:kept][inside].sum() / inside.sum()
        if candidate.sum() == 0:
            divergences.append(np.inf)
            continue
        p, q = reference / reference.sum(), candidate / candidate.sum()
        with np.errstate(divide="ignore"):
            divergences.append(sum(a * np.log(a / b) if b else np.inf for a, b in zip(p, q, strict=True) if a))
    best = len(divergences) - 1 - int(np.argmin(divergences[::-1]))
    return divergences, histogram.edges[first + best]


def mse_by_definition(histogram, levels):
    centers = (np.arange(len(histogram.counts)) + 0.5) * histogram.width
    errors = []
    for amax in centers[128:]:
        step = amax / levels
        quantized = np.rint(np.minimum(centers, amax) / step) * step
        errors.append((np.square(quantized - centers) * histogram.counts).mean())
    return centers[128 + int(np.argmin(errors))]


@settings(max_examples=25, deadline=None)
@given(
    counts=st.lists(st.integers(0, 40), min_size=140, max_size=400).filter(lambda c: sum(c[1:]) > 0),
    levels=st.sampled_from([128, 32]),
)
def test_entropy_reference_equals_the_definition(counts, levels):
    histogram = histogram_of(counts)
    divergences, expected = entropy_by_definition(histogram, levels, first=128)
    found = entropy_amax(histogram, levels, reference=True)
    if np.isfinite(divergences).any():
        # The running sums round differently: accept another candidate only if it is as good.
        index = round(found / histogram.width) - 128
        assert divergences[index] == pytest.approx(min(divergences), abs=1e-9)
    else:
        assert found == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(4))
def test_entropy_reference_finds_the_same_edge_on_activations(seed):
    histogram = gaussian(seed, bins=1024)
    _, expected = entropy_by_definition(histogram, 128, first=128)
    assert entropy_amax(histogram, 128, reference=True) == pytest.approx(expected)


@settings(max_examples=15, deadline=None)
@given(counts=st.lists(st.sampled_from([0, 0, 1, 30]), min_size=140, max_size=300).filter(lambda c: sum(c[1:]) > 0))
def test_entropy_default_equals_the_mended_definition(counts):
    histogram = histogram_of(counts)
    divergences, _ = entropy_by_definition(histogram, 32, first=128, mended=True)
    index = round(entropy_amax(histogram, 32) / histogram.width) - 128
    assert divergences[index] == pytest.approx(min(divergences), abs=1e-9)


def test_entropy_mends_the_empty_last_bin():
    """Only every fourth bin is filled, and never a last one: the reference can cut nowhere, the default can."""
    counts = np.zeros(401, dtype=int)
    counts[1:200:4] = 100
    counts[400] = 1
    histogram = histogram_of(counts)
    reference, _ = entropy_by_definition(histogram, 16, first=128)
    mended, _ = entropy_by_definition(histogram, 16, first=128, mended=True)
    assert reference[200 - 128] == np.inf
    assert np.isfinite(mended[200 - 128])
    assert entropy_amax(histogram, 16) == pytest.approx(histogram.width * (128 + int(np.argmin(mended))))


def test_entropy_with_256_levels_does_not_start_where_every_bin_has_its_own_level():
    histogram = histogram_of(np.concatenate([np.full(128, 1000), np.ones(384, dtype=int)]))
    assert entropy_amax(histogram, 256) >= 256 * histogram.width - 1e-9


@pytest.mark.parametrize("seed", range(3))
def test_mse_reference_equals_the_definition(seed):
    histogram = gaussian(seed, bins=512)
    assert mse_amax(histogram, INT8, reference=True) == pytest.approx(mse_by_definition(histogram, 127))


def mse_on_the_grid(histogram, scheme, amax):
    """Mean squared error of the bins' centers, of either sign where there are negative values, rounded as PTQ does."""
    low, high = max(histogram.minimum, -amax), min(histogram.maximum, amax)
    centers = torch.from_numpy((np.arange(len(histogram.counts)) + 0.5) * histogram.width).float()
    x = centers[None] * torch.tensor([[1.0], [-1.0]] if low < 0 else [[1.0]])
    errors = (fake_quantize(x, grid_for_range(low, high, scheme)).double() - x.double()).square().mean(0).numpy()
    return (errors * histogram.counts).sum() / histogram.total


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("bits", [8, 6, 4])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("relu", [True, False])
def test_mse_default_is_the_best_on_the_schemes_own_grid(relu, signed, bits, seed):
    """Of two-sided data the search knows magnitudes alone, not the zero point's rounding or the extra level."""
    scheme = Scheme(bits=bits, signed=signed, symmetric=signed)
    histogram = gaussian(seed, bins=512, relu=relu)
    centers = (np.arange(len(histogram.counts)) + 0.5) * histogram.width
    candidates = [*centers[128:][centers[128:] < histogram.amax], histogram.amax]
    errors = [mse_on_the_grid(histogram, scheme, amax) for amax in candidates]
    found = mse_amax(histogram, scheme)
    if relu:
        assert found == pytest.approx(candidates[int(np.argmin(errors))])
    assert mse_on_the_grid(histogram, scheme, found) <= (1 + 1e-6 if relu else 1.03) * min(errors)


def test_mse_of_four_bits_clips_more_than_that_of_eight():
    histogram = gaussian(bins=2048)
    assert mse_amax(histogram, Scheme(bits=4)) < mse_amax(histogram, INT8)


def test_mse_can_keep_the_largest_value():
    counts = np.zeros(2048, dtype=int)
    counts[-1] = 1000
    histogram = histogram_of(counts)
    assert mse_amax(histogram, INT8) == pytest.approx(histogram.amax, rel=1e-3)


def test_percentile_by_hand():
    histogram = histogram_of([50, 40, 9, 1], width=1.0)
    assert percentile_amax(histogram, 90.0) == 2.0
    assert percentile_amax(histogram, 90.0, reference=True) == 1.0
    assert percentile_amax(histogram, 99.5) == 4.0
    assert percentile_amax(histogram, 100.0) == 4.0


@pytest.mark.parametrize("percentile", [0.0, -1.0, 100.5])
def test_percentile_out_of_range(percentile):
    with pytest.raises(InputError, match=r"above 0 and up to 100"):
        percentile_amax(gaussian(), percentile)


@pytest.mark.parametrize(
    ("relu", "scheme", "levels"),
    [
        (True, INT8, 128),
        (True, UINT8, 256),
        (False, INT8, 128),
        (False, UINT8, 128),
        (True, Scheme(bits=4), 8),
    ],
)
def test_levels_on_magnitudes(relu, scheme, levels):
    assert magnitude_levels(gaussian(relu=relu), scheme) == levels


@pytest.mark.parametrize("calibrator", CALIBRATORS)
@pytest.mark.parametrize("scheme", [INT8, UINT8])
@pytest.mark.parametrize("relu", [True, False])
def test_ranges_stay_within_what_was_seen(calibrator, scheme, relu):
    histogram = gaussian(bins=2048, relu=relu)
    low, high = search_range(calibrator, histogram, scheme)
    assert histogram.minimum <= low <= 0.0 < high <= histogram.maximum
    assert (low == 0.0) == relu


@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_activations_that_are_all_zero_or_constant(calibrator):
    zeros, constant = Histogram(), Histogram()
    zeros.update(torch.zeros(10))
    constant.update(torch.full((10,), 3.0))
    assert search_range(calibrator, zeros, INT8) == (0.0, 0.0)
    low, high = search_range(calibrator, constant, INT8)
    assert low <= 3.0
    assert high == pytest.approx(3.0, rel=1e-3)


def test_unknown_calibrator_and_empty_histogram():
    with pytest.raises(InputError, match=r"'median'.*max, percentile, mse, entropy"):
        search_range("median", gaussian(), INT8)
    with pytest.raises(InputError, match="empty"):
        search_range("max", Histogram(), INT8)
