"""Accuracy against latency: one point for each model and runtime whose latency a record holds."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from repquant.report.record import Record
from repquant.report.rows import Row
from repquant.report.run import Run
from repquant.report.scales import Scale

_WIDTH, _HEIGHT = 760.0, 420.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 70.0, 740.0, 40.0, 360.0
_MARGIN = 0.08  # of the range, around the points


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A line across the drawing: where, and what it says."""

    at: float
    text: str


@dataclass(frozen=True, kw_only=True)
class LatencyPoint:
    """A model in a runtime.

    Attributes:
        name: of both, and of the run where there are several.
        ms: median latency.
        value: on the other axis.
        x, y: its place.
        is_float: whether it is a float model.
    """

    name: str
    ms: float
    value: float
    x: float
    y: float
    is_float: bool


@dataclass(frozen=True, kw_only=True)
class LatencyChart:
    """The points, and the drawing that they are in.

    Attributes:
        points: the fastest first.
        measure: what the other axis shows: "top-1 %" where all images have labels, else "agreement %".
        x_ticks, y_ticks: lines across the drawing.
    """

    points: tuple[LatencyPoint, ...]
    measure: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    width: float = _WIDTH
    height: float = _HEIGHT
    left: float = _LEFT
    right: float = _RIGHT
    top: float = _TOP
    bottom: float = _BOTTOM


@dataclass(frozen=True, kw_only=True)
class _Measured:
    name: str
    ms: float
    row: Row
    is_float: bool


def latency_chart(runs: Sequence[Run]) -> LatencyChart | None:
    """Return the chart of all runs, None where no latency was measured."""
    found = [
        measured
        for run in runs
        if run.record is not None
        for measured in _measured(run.record, f"{run.name}, " if len(runs) > 1 else "")
    ]
    has_labels = all(each.row.top1 is not None for each in found)
    values = [each.row.top1 if has_labels else 100.0 if each.is_float else each.row.agreement for each in found]
    drawn = [(each, value) for each, value in zip(found, values, strict=True) if value is not None]
    if not drawn:
        return None
    x = Scale(low=0.0, high=max(1.1 * max(each.ms for each, _ in drawn), 1e-9), start=_LEFT, end=_RIGHT)
    y = _around([value for _, value in drawn])
    return LatencyChart(
        points=_points(drawn, x, y),
        measure="top-1 %" if has_labels else "agreement %",
        x_ticks=tuple(Tick(at=x(tick), text=f"{tick:g}") for tick in x.ticks()),
        y_ticks=tuple(Tick(at=y(tick), text=f"{tick:g}") for tick in y.ticks()),
    )


def _measured(record: Record, run: str) -> Iterator[_Measured]:
    """Yield the models of a run, and in each runtime once the float one, whose latency is known by the ratios to it."""
    with_float: set[str] = set()
    for row in record.results:
        if row.latency_ms is None:
            continue
        if record.float_row is not None and row.latency_ratio and row.runtime not in with_float:
            with_float.add(row.runtime)
            ms = row.latency_ms / row.latency_ratio
            yield _Measured(name=f"{run}float, {row.runtime}", ms=ms, row=record.float_row, is_float=True)
        name = f"{run}{row.calibrator or 'as given'}, {row.runtime}"
        yield _Measured(name=name, ms=row.latency_ms, row=row, is_float=False)


def _around(values: Sequence[float]) -> Scale:
    low, high = min(values), max(values)
    margin = max(_MARGIN * (high - low), 0.05)
    return Scale(low=low - margin, high=high + margin, start=_BOTTOM, end=_TOP)


def _points(drawn: Sequence[tuple[_Measured, float]], x: Scale, y: Scale) -> tuple[LatencyPoint, ...]:
    points = [
        LatencyPoint(name=each.name, ms=each.ms, value=value, x=x(each.ms), y=y(value), is_float=each.is_float)
        for each, value in drawn
    ]
    return tuple(sorted(points, key=lambda point: point.ms))
