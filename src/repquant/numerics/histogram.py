"""One streaming histogram of magnitudes, from which every calibrator reads its range.

Memory is bounded by the number of bins, whatever the number of batches.
"""

from functools import cache
from math import isfinite
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from repquant.errors import InputError

_CHUNK = 1 << 19  # elements counted at a time: the scratch buffers stay in the cache
_MAX_BINS = torch.iinfo(torch.int16).max // 4  # indices are int16, and the bins may grow fourfold
_STRIDES = 1024  # counters are laid out for a multiple of it: a few layouts serve all histograms
_MIN_WIDTH = torch.finfo(torch.float32).tiny  # the reciprocal of a smaller width overflows


class Histogram:
    """Counts of |x| in bins of equal width, with the exact smallest and largest x.

    The first batch that holds a value other than zero fixes the width at max|x| / bins. A later, larger value appends
    bins of that width; when there would be more than 4 * bins, neighbours are merged in pairs and the width doubles.

    Args:
        bins: number of bins that the first batch is spread over, 2 to 8191.

    Attributes:
        counts: (B,) int64, occurrences in each bin; the value on the last edge belongs to the last bin.
        width: width of a bin, in units of x; 0 while only zeros were seen.
        minimum, maximum: exact extremes of x.
    """

    def __init__(self, bins: int = 2048) -> None:
        if not 2 <= bins <= _MAX_BINS:
            raise InputError(f"a histogram of {bins} bins was asked for; allowed are 2 to {_MAX_BINS}")
        self.bins = bins
        self.width = 0.0
        self.counts: NDArray[np.int64] = np.zeros(bins, dtype=np.int64)
        self.minimum = 0.0
        self.maximum = 0.0
        self._empty = True

    @property
    def edges(self) -> NDArray[np.floating]:
        """(B + 1,) edges of the bins."""
        return np.arange(len(self.counts) + 1) * self.width

    @property
    def amax(self) -> float:
        """Largest magnitude seen."""
        return max(self.maximum, -self.minimum)

    @property
    def total(self) -> int:
        """Number of values seen."""
        return int(self.counts.sum())

    def update(self, x: Tensor, ends: tuple[float, float] | None = None) -> None:
        """Count the values of `x`, of any shape.

        Args:
            x: the values.
            ends: the smallest and the largest of them, where they are known.

        Raises:
            InputError: `x` holds NaN or infinite values, or none at all.
        """
        if x.numel() == 0:
            raise InputError("an empty tensor can't be calibrated on")
        x = x.detach().float().contiguous().view(-1)
        low, high = ends or (float(value) for value in torch.aminmax(x))
        if not (isfinite(low) and isfinite(high)):
            raise InputError("an activation is NaN or infinite; check the weights and the calibration images")
        self.minimum = low if self._empty else min(low, self.minimum)
        self.maximum = high if self._empty else max(high, self.maximum)
        self._empty = False
        if self.amax == 0.0:
            self.counts[0] += x.numel()
            return
        self._make_room()
        if x.device.type != "cpu":
            self.counts += _count_on_device(x, self.width, len(self.counts))
            return
        for chunk in x.split(_CHUNK):
            self.counts += _count(chunk, self.width, len(self.counts), signed=low < 0)

    def _make_room(self) -> None:
        if self.width == 0.0:
            self.width = max(self.amax / self.bins, _MIN_WIDTH)
            return
        needed = int(np.ceil(self.amax / self.width))
        while needed > 4 * self.bins:
            padded = np.append(self.counts, np.zeros(len(self.counts) % 2, dtype=np.int64))
            self.counts = padded[0::2] + padded[1::2]
            self.width *= 2
            needed = int(np.ceil(self.amax / self.width))
        missing = max(0, max(needed, self.bins) - len(self.counts))
        self.counts = np.append(self.counts, np.zeros(missing, dtype=np.int64))


def _count(x: Tensor, width: float, bins: int, *, signed: bool) -> NDArray[np.int64]:
    """Return how many of at most _CHUNK values fall in each bin."""
    stride = -(-(bins + 1) // _STRIDES) * _STRIDES
    lanes = max(1, min(4, torch.iinfo(torch.int16).max // stride))
    with _one_at_a_time:
        steps, index = (scratch[: len(x)] for scratch in _scratch())
        torch.mul(x, 1.0 / width, out=steps)
        if signed:
            steps.abs_()
        index.copy_(steps)  # truncation is the floor
        index.add_(_lane_offsets(lanes, stride, _CHUNK)[: len(x)])
        counted: NDArray[np.int64] = torch.bincount(index, minlength=lanes * stride).numpy()
    counts: NDArray[np.int64] = counted.reshape(lanes, stride).sum(0)
    return _with_last_edge(counts, bins)


def _count_on_device(x: Tensor, width: float, bins: int) -> NDArray[np.int64]:
    """Return how many values fall in each bin, counted where they are."""
    counts = torch.bincount((x * (1.0 / width)).abs_().int(), minlength=bins + 1)
    return _with_last_edge(np.array(counts.tolist(), dtype=np.int64), bins)


def _with_last_edge(counts: NDArray[np.int64], bins: int) -> NDArray[np.int64]:
    """Give the last bin the values on its upper edge, or that the quotient's rounding lifts there."""
    counts[bins - 1] += counts[bins]
    return counts[:bins]


@cache
def _lane_offsets(lanes: int, stride: int, values: int) -> Tensor:
    """Return what is added to the indices of consecutive values, so that a bin has several counters in turn.

    Behind a ReLU every second value is 0, and a counter that is read again right after it was written costs more than
    twice the time.
    """
    with torch.inference_mode(mode=False):
        return (torch.arange(values) % lanes * stride).to(torch.int16)


_one_at_a_time = Lock()


@cache
def _scratch() -> tuple[Tensor, Tensor]:
    """Return buffers that all histograms share: new ones would cost as much as the counting, in page faults."""
    with torch.inference_mode(mode=False):  # else nobody outside inference mode could write to them
        return torch.empty(_CHUNK, dtype=torch.float32), torch.empty(_CHUNK, dtype=torch.int16)
