"""Latency of several models on one machine, so that it can be compared: raw samples of one alternating run."""

from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import NamedTuple

import numpy as np

from repquant.errors import InputError

_MS_PER_SECOND = 1000
_RESAMPLES = 2000


class Ratio(NamedTuple):
    """How many times as long one model takes as another.

    Attributes:
        median: of the rounds' ratios.
        ci95: 95 % interval of `median`.
    """

    median: float
    ci95: tuple[float, float]


def measure_latency(
    calls: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 50,
    warm_up: int = 5,
    seed: int = 0,
) -> dict[str, list[float]]:
    """Make every call once a round, in an order that is shuffled each round, and return the milliseconds.

    A machine that slows down or other people's work then weighs on all of them alike, and none always follows the same
    other one.

    Args:
        calls: name -> what runs one batch; names are the caller's.
        rounds: samples of each.
        warm_up: rounds before them that are not measured.
        seed: of the orders.

    Returns:
        Name -> latency in ms in each round.

    Raises:
        InputError: no call, no round, or less than no round to warm up.
    """
    if not calls:
        raise InputError("there is no model to measure; give at least one")
    if rounds < 1 or warm_up < 0:
        raise InputError(f"{rounds} rounds after {warm_up} to warm up were asked for; give at least 1 and 0")
    generator = np.random.default_rng(seed)
    names = list(calls)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for current in range(warm_up + rounds):
        for place in generator.permutation(len(names)):
            name = names[place]
            started = perf_counter()
            calls[name]()
            elapsed = perf_counter() - started
            if current >= warm_up:
                samples[name].append(_MS_PER_SECOND * elapsed)
    return samples


def ratio(samples: Sequence[float], baseline_samples: Sequence[float], *, seed: int = 0) -> Ratio:
    """Compare the latency of a model with that of a baseline in the same rounds.

    The interval is a percentile bootstrap over rounds (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993):
    a round's two samples stay together, so what slowed down both leaves it alone.

    Args:
        samples: of the model, one a round, above 0.
        baseline_samples: of the baseline, in the same rounds.
        seed: of the resampling.

    Raises:
        ValueError: the two differ in length, or there are no samples.
    """
    if len(samples) != len(baseline_samples) or not len(samples):
        raise ValueError(f"can't pair {len(samples)} samples with {len(baseline_samples)}")
    ratios = np.asarray(samples, dtype=np.float64) / np.asarray(baseline_samples, dtype=np.float64)
    generator = np.random.default_rng(seed)
    drawn = generator.integers(len(ratios), size=(_RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(ratios[drawn], axis=1), (2.5, 97.5))
    return Ratio(float(np.median(ratios)), (float(low), float(high)))
