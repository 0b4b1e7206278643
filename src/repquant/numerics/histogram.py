"""One streaming histogram of magnitudes, from which every calibrator reads its range.

Memory is bounded by the number of bins, whatever the number of batches.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from repquant.errors import InputError

_CHUNK = 1 << 19  # elements counted at a time: the scratch buffers stay in the cache
_MAX_BINS = torch.iinfo(torch.int16).max // 4  # indices are int16, and the bins may grow fourfold
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

    def update(self, x: Tensor) -> None:
        """Count the values of `x`, of any shape.

        Raises:
            InputError: `x` holds NaN or infinite values, or none at all.
        """
        if x.numel() == 0:
            raise InputError("an empty tensor can't be calibrated on")
        x = x.detach().float().contiguous().view(-1)
        low, high = (float(value) for value in torch.aminmax(x))
        if not (np.isfinite(low) and np.isfinite(high)):
            raise InputError("an activation is NaN or infinite; check the weights and the calibration images")
        self.minimum = low if self._empty else min(low, self.minimum)
        self.maximum = high if self._empty else max(high, self.maximum)
        self._empty = False
        if self.amax == 0.0:
            self.counts[0] += x.numel()
            return
        self._make_room()
        self.counts += _count(x, self.width, len(self.counts), signed=low < 0)

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
    total = np.zeros(bins + 1, dtype=np.int64)
    with _one_at_a_time:
        steps, index = _scratch()
        for chunk in x.split(_CHUNK):
            scaled, whole = steps[: len(chunk)], index[: len(chunk)]
            torch.mul(chunk, 1.0 / width, out=scaled)
            if signed:
                scaled.abs_()
            whole.copy_(scaled)  # truncation is the floor
            for counts in _workers().map(
                lambda part: torch.bincount(part, minlength=bins + 1), whole.chunk(_threads())
            ):
                total += counts.numpy()
    # The value on the last edge, or one that the quotient's rounding lifts there, belongs to the last bin.
    total[bins - 1] += total[bins]
    return total[:bins]


_one_at_a_time = Lock()


@cache
def _scratch() -> tuple[Tensor, Tensor]:
    """Return buffers that all histograms share: new ones would cost as much as the counting, in page faults."""
    with torch.inference_mode(mode=False):  # else nobody outside inference mode could write to them
        return torch.empty(_CHUNK, dtype=torch.float32), torch.empty(_CHUNK, dtype=torch.int16)


def _threads() -> int:
    return max(1, min(torch.get_num_threads(), 8))


_pool: ThreadPoolExecutor | None = None
_pool_process = 0


def _workers() -> ThreadPoolExecutor:
    """Return the process's counting threads: bincount itself runs on one and releases the interpreter lock."""
    global _pool, _pool_process
    if _pool is None or _pool_process != os.getpid():
        _pool, _pool_process = ThreadPoolExecutor(8, thread_name_prefix="histogram"), os.getpid()
    return _pool
