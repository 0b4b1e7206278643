"""From a histogram of magnitudes to a clipping threshold: max, percentile, MSE and entropy.

All four searches read the same histogram and return amax, the largest magnitude that the grid has to represent. The
definitions are those of NVIDIA pytorch-quantization; `reference=True` follows them to the letter, the default mends
what the docstring of each search names. Every search is vectorized over its candidates.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from repquant.choices import CALIBRATORS
from repquant.errors import InputError
from repquant.numerics.affine import Scheme
from repquant.numerics.histogram import Histogram

_FIRST_CANDIDATE = 128  # bins; pytorch-quantization starts its searches here
_BLOCK = 128  # candidates evaluated at a time, which bounds the scratch memory

Floats = NDArray[Any]  # float64


def search_range(
    calibrator: str, histogram: Histogram, scheme: Scheme, *, percentile: float = 99.99
) -> tuple[float, float]:
    """Return the range (low, high) that `calibrator` chooses for `scheme`.

    The threshold applies to magnitudes; each end is then cut back to what was seen, so that one-sided data (after a
    ReLU) get the range (0, amax).

    Raises:
        InputError: an unknown calibrator, a percentile outside (0, 100], or a histogram that has seen nothing.
    """
    if calibrator not in CALIBRATORS:
        raise InputError(f"unknown calibrator {calibrator!r}; allowed are {', '.join(CALIBRATORS)}")
    if histogram.total == 0:
        raise InputError("there is nothing to calibrate on: the histogram is empty")
    if histogram.amax == 0.0:
        return 0.0, 0.0
    if calibrator == "max":
        amax = histogram.amax
    elif calibrator == "percentile":
        amax = percentile_amax(histogram, percentile)
    elif calibrator == "mse":
        amax = mse_amax(histogram, scheme)
    else:
        amax = entropy_amax(histogram, magnitude_levels(histogram, scheme))
    # Both ends are clipped from both sides: data far from zero may lie beyond the threshold as a whole.
    return min(max(histogram.minimum, -amax), amax), max(min(histogram.maximum, amax), -amax)


def magnitude_levels(histogram: Histogram, scheme: Scheme) -> int:
    """Return how many levels of the grid lie on magnitudes: all of them for one-sided data, else half.

    A signed symmetric grid spends half of its levels on negative values, whether there are any or not.
    """
    one_sided = histogram.minimum >= 0.0 or histogram.maximum <= 0.0
    all_levels = 1 << scheme.bits
    return all_levels if one_sided and not (scheme.signed and scheme.symmetric) else all_levels // 2


def percentile_amax(histogram: Histogram, percentile: float = 99.99, *, reference: bool = False) -> float:
    """Return the magnitude below which `percentile` percent of the values lie.

    The reference returns the lower edge of the bin in which the percentile is reached, which clips more than was asked
    for; the default returns its upper edge, and never more than the largest value seen.
    """
    if not 0.0 < percentile <= 100.0:
        raise InputError(f"percentile {percentile} was given; allowed are values above 0 and up to 100")
    share = np.cumsum(histogram.counts) / histogram.total
    index = min(int(np.searchsorted(share, percentile / 100.0)), len(share) - 1)
    if reference:
        return float(histogram.edges[index])
    return min(float(histogram.edges[index + 1]), histogram.amax)


def mse_amax(histogram: Histogram, scheme: Scheme, *, reference: bool = False) -> float:
    """Return the threshold with the least mean squared error between bin centers and their quantized values.

    The reference tries the centers of bins 128 and up on a grid symmetric about zero. The default measures the error
    on the grid of `scheme` for the cut-back range, and also tries the largest value itself, which the reference can't
    reach.
    """
    counts = histogram.counts.astype(np.float64)
    centers = (np.arange(len(counts)) + 0.5) * histogram.width
    first = min(_FIRST_CANDIDATE, len(counts) - 1)
    thresholds: Floats = centers[first:]
    if reference:
        steps = thresholds / scheme.qmax
    else:
        below = centers[first:][centers[first:] < histogram.amax]
        thresholds = np.concatenate([below, [histogram.amax]], dtype=np.float64)
        steps = _steps(histogram, scheme, thresholds)
    errors = np.concatenate(
        [
            _squared_error(centers, counts, thresholds[start : start + _BLOCK], steps[start : start + _BLOCK])
            for start in range(0, len(thresholds), _BLOCK)
        ]
    )
    return float(thresholds[np.argmin(errors)])


def entropy_amax(histogram: Histogram, levels: int, *, reference: bool = False) -> float:
    """Return the threshold whose quantized distribution diverges least from the one that was seen.

    For i bins kept, the reference distribution P is bins[:i] with everything above added to its last bin; the candidate
    Q pools bins[:i] into `levels` levels and spreads each level's mass evenly over its non-empty bins. The threshold is
    edge i for the i with the least KL(P || Q), the last one on ties (Migacz, "8-bit Inference with TensorRT", 2017;
    the count of bin 0 is replaced by that of bin 1, as in pytorch-quantization).

    The reference mode differs in two places. Where the last kept bin is empty but there are values above it, P has mass
    where Q has none and the divergence is infinite; the default counts that bin as one of its level's non-empty bins
    (it stays infinite where the whole level is empty).
    The reference starts at 128 bins even for 256 levels, where a bin has a level of its own and quantization seems
    free; the default starts at `levels` bins.
    """
    counts = histogram.counts.astype(np.float64)
    counts[0] = counts[1]
    first = _FIRST_CANDIDATE if reference else max(_FIRST_CANDIDATE, levels)
    if len(counts) <= first or counts.sum() == 0.0:
        return histogram.amax
    kept = np.arange(first, len(counts) + 1)
    divergences = np.concatenate(
        [
            _divergence(counts, kept[start : start + _BLOCK], levels, reference=reference)
            for start in range(0, len(kept), _BLOCK)
        ]
    )
    best = len(divergences) - 1 - int(np.argmin(divergences[::-1]))
    amax = float(histogram.edges[kept[best]])
    return amax if reference else min(amax, histogram.amax)


def _steps(histogram: Histogram, scheme: Scheme, thresholds: Floats) -> Floats:
    if scheme.symmetric:
        return thresholds / scheme.qmax
    low = np.minimum(-np.minimum(thresholds, -histogram.minimum), 0.0)
    high = np.maximum(np.minimum(thresholds, histogram.maximum), 0.0)
    return np.asarray((high - low) / (scheme.qmax - scheme.qmin))


def _squared_error(centers: Floats, counts: Floats, thresholds: Floats, steps: Floats) -> Floats:
    """Return the summed squared error of each candidate: (T,) from (B,) centers and (T,) thresholds and steps."""
    x = np.minimum(centers[None, :], thresholds[:, None])
    x /= steps[:, None]
    np.rint(x, out=x)
    x *= steps[:, None]
    x -= centers[None, :]
    np.square(x, out=x)
    return x @ counts


def _divergence(counts: Floats, kept: NDArray[np.int64], levels: int, *, reference: bool) -> Floats:
    """Return KL(P || Q) for each number of bins kept: (K,).

    A level's bins share one value of Q, so that sums over bins become differences of running sums at level borders:
    KL = sum_j p_j log p_j - sum_level P(level) log q(level), with the last bin, which carries the outliers, apart.
    """
    mass = np.concatenate([[0.0], np.cumsum(counts)])
    filled = np.concatenate([[0.0], np.cumsum(counts > 0)])
    entropy = np.concatenate([[0.0], np.cumsum(_x_log_x(counts))])
    total = mass[-1]
    outliers = total - mass[kept]
    last = counts[kept - 1]

    # Bin j belongs to level k where border[k] <= j < border[k + 1]; borders are fractions of the kept bins.
    borders = np.ceil(np.arange(levels + 1) * (kept[:, None] / levels)).astype(np.int64)
    borders[:, -1] = kept
    level_mass = np.diff(mass[borders], axis=1)
    level_filled = np.diff(filled[borders], axis=1)
    if not reference:
        level_filled[:, -1] += (last == 0) & (outliers > 0)
    q_log = np.log(np.divide(level_mass, level_filled, out=np.ones_like(level_mass), where=level_mass > 0))

    # Unnormalised: P sums to `total`, Q to the kept mass; each logarithm is corrected by its own normaliser.
    kept_mass = mass[kept]
    cross = (level_mass * q_log).sum(1)
    in_level = level_mass[:, -1] > 0
    reachable = in_level if not reference else last > 0
    cross = cross + np.where(reachable, outliers * q_log[:, -1], 0.0)
    own = entropy[kept] - _x_log_x(last) + _x_log_x(last + outliers)
    with np.errstate(divide="ignore", invalid="ignore"):
        divergence = (own - cross) / total + np.log(kept_mass / total)
    divergence[(outliers > 0) & ~reachable] = np.inf
    divergence[kept_mass == 0] = np.inf
    return np.asarray(divergence)


def _x_log_x(x: Floats) -> Floats:
    return np.asarray(x * np.log(np.where(x > 0, x, 1.0)))
