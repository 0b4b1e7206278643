import pytest

from repquant.bench.measurement import float_share, summarize
from repquant.runtimes.layer_time import LayerTime, median_times

SETTING = {"runtime": "r", "runtime_version": "1", "threads": 2, "batch": 8}


def layer(precision, milliseconds):
    return LayerTime(name=precision, kind="k", precision=precision, milliseconds=milliseconds)


def test_a_row_by_hand():
    """Samples 1, 2, ..., 101 ms: percentile q is 1 + q. The baseline takes 4 times as long in each round."""
    samples = [float(sample) for sample in range(1, 102)]
    row = summarize("m", samples, [4 * sample for sample in samples], macs=510_000_000, **SETTING)
    assert (row.median_ms, row.p95_ms, row.p99_ms) == (51.0, 96.0, 100.0)
    assert row.images_per_second == pytest.approx(1000 * 8 / 51)
    assert row.gmacs_per_second == pytest.approx(10)  # 0.51 GMAC in 0.051 s
    assert (row.ratio, row.ratio_ci95) == (0.25, (0.25, 0.25))
    assert row.samples_ms == tuple(samples)


def test_what_was_not_given_is_not_told():
    row = summarize("m", [1.0], None, **SETTING)
    assert (row.ratio, row.ratio_ci95, row.gmacs_per_second, row.float_share) == (None,) * 4


def test_share_of_the_time_in_kernels_on_floats():
    layers = [layer("INT8", 6.0), layer("FP32", 1.5), layer("BF16", 0.5), layer("reformat", 1.0), layer("other", 1.0)]
    assert float_share(layers) == pytest.approx(20)
    assert float_share([]) is None


def test_median_of_each_operator_over_the_runs():
    runs = [[layer("INT8", 1.0), layer("INT8", 5.0)], [layer("INT8", 3.0), layer("INT8", 4.0)]]
    runs.append([layer("INT8", 2.0), layer("INT8", 60.0)])
    assert [each.milliseconds for each in median_times(runs)] == [2.0, 5.0]
