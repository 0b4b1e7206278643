"""One row of a benchmark: a file in an engine, with a batch and a number of threads."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from repquant.bench.latency import ratio
from repquant.runtimes.layer_time import LayerTime


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What was measured of a file. None stands for what does not apply or can't be found out.

    Attributes:
        model: the file, by its name, or its path where others have the same name.
        runtime, runtime_version: the engine.
        threads: of the engine; None is its own choice.
        batch: images a call.
        median_ms, p95_ms, p99_ms: latency of a call.
        images_per_second: at the median.
        ratio, ratio_ci95: how many times as long it takes as the baseline, and the 95 % interval; None without one.
        gmacs_per_second: 10^9 multiply-accumulates a second, counted off the file, at the median.
        peak_share: of the most that int8 matrix products reach on the machine, in percent.
        memory_mb: what loading and running it adds to a process at its peak.
        float_share: percentage of the profiled time in kernels that compute, and not in integers.
        layers: by the engine's profiler, which slows it down a little.
        samples_ms: latency in each round.
    """

    model: str
    runtime: str
    runtime_version: str
    threads: int | None
    batch: int
    median_ms: float
    p95_ms: float
    p99_ms: float
    images_per_second: float
    ratio: float | None = None
    ratio_ci95: tuple[float, float] | None = None
    gmacs_per_second: float | None = None
    peak_share: float | None = None
    memory_mb: float | None = None
    float_share: float | None = None
    layers: tuple[LayerTime, ...] = ()
    samples_ms: tuple[float, ...] = ()


def summarize(
    model: str,
    samples: Sequence[float],
    baseline: Sequence[float] | None,
    *,
    runtime: str,
    runtime_version: str,
    threads: int | None,
    batch: int,
    macs: int | None = None,
    memory_mb: float | None = None,
    layers: Sequence[LayerTime] = (),
) -> Measurement:
    """Return the row of a file from its latency in ms in each round, and the baseline's in the same rounds.

    Args:
        model, runtime, runtime_version, threads, batch, memory_mb, layers: as in `Measurement`.
        samples: of the file.
        baseline: of the baseline, if there is one.
        macs: multiply-accumulates of a call.
    """
    median, p95, p99 = (float(value) for value in np.percentile(samples, (50, 95, 99)))
    compared = None if baseline is None else ratio(samples, baseline)
    return Measurement(
        model=model,
        runtime=runtime,
        runtime_version=runtime_version,
        threads=threads,
        batch=batch,
        median_ms=median,
        p95_ms=p95,
        p99_ms=p99,
        images_per_second=1000 * batch / median,
        ratio=None if compared is None else compared.median,
        ratio_ci95=None if compared is None else compared.ci95,
        gmacs_per_second=None if macs is None else macs / median / 1e6,
        memory_mb=memory_mb,
        float_share=float_share(layers),
        layers=tuple(layers),
        samples_ms=tuple(samples),
    )


def float_share(layers: Sequence[LayerTime]) -> float | None:
    """Return the percentage of the layers' time in kernels that compute, and not in integers; None without layers."""
    total = sum(layer.milliseconds for layer in layers)
    return 100 * sum(layer.milliseconds for layer in layers if layer.is_float) / total if total else None
