from itertools import count

import pytest

from repquant.methods.learning_time import seconds_a_step
from repquant.numerics.affine import Scheme

SCHEME = Scheme(narrow=True, channel_axis=0)


def test_each_layer_takes_its_time(mixed, monkeypatch):
    """With a clock that ticks once a step, every layer takes a tick, but for the one that is not learned."""
    ticks = count()
    monkeypatch.setattr("repquant.methods.learning_time.perf_counter", lambda: float(next(ticks)))
    assert seconds_a_step(mixed, ["stem", "head"], SCHEME) == pytest.approx(2)
    assert seconds_a_step(mixed, ["tokens", "mixer", "up", "gate.down"], SCHEME) == pytest.approx(3)


def test_a_real_clock_gives_seconds(mixed):
    assert 0 < seconds_a_step(mixed, ["head"], SCHEME) < 60
