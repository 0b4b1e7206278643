import numpy as np
import pytest

from repquant.bench import latency
from repquant.bench.latency import measure_latency, ratio
from repquant.errors import InputError


class Clock:
    """A clock that only the fake engines move, in seconds."""

    def __init__(self):
        self.now = 0.0
        self.calls = []

    def __call__(self):
        return self.now

    def engine(self, name, seconds):
        def run():
            self.calls.append(name)
            self.now += seconds

        return run


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(latency, "perf_counter", clock)
    return clock


def test_samples_are_milliseconds_of_each_round_without_the_warm_up(clock):
    engines = {"fast": clock.engine("fast", 0.25), "slow": clock.engine("slow", 0.5)}
    assert measure_latency(engines, rounds=3, warm_up=2) == {"fast": [250.0] * 3, "slow": [500.0] * 3}
    assert len(clock.calls) == 2 * 5


def test_every_round_runs_each_engine_once_in_an_order_of_its_own(clock):
    engines = {name: clock.engine(name, 1.0) for name in "abc"}
    measure_latency(engines, rounds=30, warm_up=0)
    orders = ["".join(clock.calls[start : start + 3]) for start in range(0, 90, 3)]
    assert {"".join(sorted(order)) for order in orders} == {"abc"}
    assert {order[0] for order in orders} == set("abc")
    calls, clock.calls = clock.calls, []
    measure_latency(engines, rounds=30, warm_up=0)
    assert clock.calls == calls
    clock.calls = []
    measure_latency(engines, rounds=30, warm_up=0, seed=1)
    assert clock.calls != calls


@pytest.mark.parametrize(("settings", "message"), [({"rounds": 0}, "0 rounds"), ({"warm_up": -1}, "-1 to warm up")])
def test_settings_that_make_no_run(clock, settings, message):
    with pytest.raises(InputError, match=message):
        measure_latency({"a": clock.engine("a", 1.0)}, **settings)


def test_no_engine():
    with pytest.raises(InputError, match="no model to measure"):
        measure_latency({})


def test_ratio_of_equal_and_of_doubled_samples():
    samples = [1.0, 2.0, 5.0, 3.0]
    assert ratio(samples, samples) == (1.0, (1.0, 1.0))
    assert ratio([2 * sample for sample in samples], samples) == (2.0, (2.0, 2.0))


def test_rounds_that_slow_down_both_leave_the_ratio_alone():
    generator = np.random.default_rng(0)
    slowdown = generator.uniform(1, 20, 200)
    noise = generator.normal(1.1, 0.01, 200)
    compared = ratio(slowdown * noise, slowdown)
    assert compared.median == pytest.approx(1.1, abs=0.005)
    low, high = compared.ci95
    assert low <= compared.median <= high
    assert high - low < 0.01


def test_interval_covers_the_ratio_and_shrinks_with_rounds():
    generator = np.random.default_rng(1)
    widths = []
    for rounds in (20, 200):
        covered = 0
        for _ in range(20):
            compared = ratio(generator.lognormal(0.1, 0.2, rounds), np.ones(rounds))
            covered += compared.ci95[0] <= np.exp(0.1) <= compared.ci95[1]
        assert covered >= 16
        widths.append(compared.ci95[1] - compared.ci95[0])
    assert widths[1] < widths[0]


def test_interval_depends_on_the_seed_alone():
    samples, baseline = np.random.default_rng(2).uniform(1, 2, (2, 25))
    assert ratio(samples, baseline) == ratio(list(samples), list(baseline))
    assert ratio(samples, baseline, seed=3).median == ratio(samples, baseline).median


@pytest.mark.parametrize("baseline", [[], [1.0]])
def test_samples_that_can_not_be_paired(baseline):
    with pytest.raises(ValueError, match="can't pair"):
        ratio([1.0, 2.0] if baseline else [], baseline)
