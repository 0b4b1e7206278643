from itertools import count

import pytest

from repquant.numerics.affine import Scheme
from repquant.quant.convert import layer_names
from repquant.quant.learning_time import seconds_a_step


def test_each_layer_takes_its_time(network, monkeypatch):
    """With a clock that ticks once a step, every layer takes a tick."""
    ticks = count()
    monkeypatch.setattr("repquant.quant.learning_time.perf_counter", lambda: float(next(ticks)))
    scheme = Scheme(narrow=True, channel_axis=0)
    assert seconds_a_step(network, scheme) == pytest.approx(len(layer_names(network)))
    assert seconds_a_step(network, scheme, ["first", "last"]) == pytest.approx(len(layer_names(network)) - 2)


def test_a_real_clock_gives_seconds(network):
    assert 0 < seconds_a_step(network, Scheme(narrow=True)) < 60
