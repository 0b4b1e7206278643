"""What a person sees on a terminal, and what a log and a pipe get."""

import json

import pytest

from repquant.cli import console


@pytest.fixture
def clock(monkeypatch):
    """Seconds that only a test moves."""
    clock = [0.0]
    monkeypatch.setattr(console, "monotonic", lambda: clock[0])
    return clock


def test_a_log_gets_a_line_now_and_then(clock, capsys):
    with console.progress("calibrate", 400) as advance:
        for second in range(1, 41):
            clock[0] = second
            advance(10)
    assert capsys.readouterr().err.splitlines() == [
        "calibrate: 150 of 400, 10/s, 25 s left",
        "calibrate: 300 of 400, 10/s, 10 s left",
    ]


def test_steps_follow_each_other_each_with_its_own_count(clock, capsys):
    with console.steps({"calibrate": 100}) as advance:
        for second, step in enumerate(["calibrate"] * 20 + ["mse"] * 20):
            clock[0] = second
            advance(step, 2)
    assert capsys.readouterr().err.splitlines() == ["calibrate: 32 of 100, 2.13/s, 32 s left", "mse: 32, 2.13/s"]


def test_what_is_quick_or_not_shown_says_nothing(clock, capsys):
    with console.progress("export", 3) as advance:
        advance(3)
    with console.progress("evaluate", 300, shown=False) as advance:
        clock[0] = 100
        advance(10)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("on_terminal", "asked", "printed"), [(0, 0, True), (1, 0, False), (1, 1, True)])
def test_a_terminal_gets_the_headline_only_when_it_asks(monkeypatch, capsys, on_terminal, asked, printed):
    monkeypatch.setattr(console.sys.stdout, "isatty", lambda: bool(on_terminal))
    console.show_headlines(bool(asked))
    try:
        console.finish({"top1": 85.5})
    finally:
        console.show_headlines(False)
    out = capsys.readouterr().out
    assert (json.loads(out) == {"top1": 85.5}) if printed else out == ""
