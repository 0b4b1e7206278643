"""Accuracy against latency: one point for each model and runtime whose latency a record holds."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from repquant.report.record import LatencyRecord, Record
from repquant.report.rows import Row
from repquant.report.run import Run
from repquant.report.scales import Scale

_WIDTH, _HEIGHT = 760.0, 420.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 70.0, 600.0, 40.0, 360.0  # names stand to the right of their points
_MARGIN = 0.08  # of the range, around the points
_LINE = 14.0  # between two names that would cover each other


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
        label_y: where its name stands.
        is_float: whether it is a float model.
    """

    name: str
    ms: float
    value: float
    x: float
    y: float
    label_y: float
    is_float: bool


@dataclass(frozen=True, kw_only=True)
class LatencyChart:
    """The points, and the drawing that they are in.

    Attributes:
        points: the fastest first.
        measure: what the other axis shows: "top-1 %" where all images have labels, else "agreement %".
        circumstances: batch and threads, as a sentence.
        x_ticks, y_ticks: lines across the drawing.
    """

    points: tuple[LatencyPoint, ...]
    measure: str
    circumstances: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    width: float = _WIDTH
    height: float = _HEIGHT
    left: float = _LEFT
    right: float = _RIGHT
    top: float = _TOP
    bottom: float = _BOTTOM


def latency_chart(runs: Sequence[Run]) -> LatencyChart | None:
    """Return the chart of all runs, None where no latency was measured.

    Of several batches and numbers of threads the smallest batch counts, and what was measured first.
    """
    found: list[tuple[str, LatencyRecord, Row, bool]] = []
    for run in runs:
        if run.record is None:
            continue
        for latency in _one_each(run.record):
            row = _row_of(run.record, latency)
            if row is not None:
                is_float = row.calibrator is None
                parts = [run.name if len(runs) > 1 else "", row.calibrator or "float", latency.runtime]
                found.append((", ".join(part for part in parts if part), latency, row, is_float))
    has_labels = all(row.top1 is not None for _, _, row, _ in found)
    values = [(row.top1 if has_labels else 100.0 if is_float else row.agreement) for _, _, row, is_float in found]
    drawn = [
        (name, latency, value, is_float)
        for (name, latency, _, is_float), value in zip(found, values, strict=True)
        if value is not None
    ]
    if not drawn:
        return None
    x = Scale(low=0.0, high=1.1 * max(latency.median_ms for _, latency, _, _ in drawn), start=_LEFT, end=_RIGHT)
    y = _around([value for _, _, value, _ in drawn])
    return LatencyChart(
        points=_points(drawn, x, y),
        measure="top-1 %" if has_labels else "agreement %",
        circumstances=_circumstances([latency for _, latency, _, _ in drawn]),
        x_ticks=tuple(Tick(at=x(tick), text=f"{tick:g}") for tick in x.ticks()),
        y_ticks=tuple(Tick(at=y(tick), text=f"{tick:g}") for tick in y.ticks()),
    )


def _one_each(record: Record) -> list[LatencyRecord]:
    chosen: dict[tuple[str, str], LatencyRecord] = {}
    for latency in sorted(record.latency, key=lambda latency: latency.batch):  # stable
        chosen.setdefault((latency.model, latency.runtime), latency)
    return list(chosen.values())


def _row_of(record: Record, latency: LatencyRecord) -> Row | None:
    """Return the row of the file that was measured: in the same runtime, or else in another one."""
    rows = [row for row in record.rows if row.model and PurePath(row.model).name == PurePath(latency.model).name]
    return min(rows, key=lambda row: row.runtime != latency.runtime, default=None)


def _around(values: Sequence[float]) -> Scale:
    low, high = min(values), max(values)
    margin = max(_MARGIN * (high - low), 0.05)
    return Scale(low=low - margin, high=high + margin, start=_BOTTOM, end=_TOP)


def _points(drawn: Sequence[tuple[str, LatencyRecord, float, bool]], x: Scale, y: Scale) -> tuple[LatencyPoint, ...]:
    points: list[LatencyPoint] = []
    taken: list[float] = []
    for name, latency, value, is_float in sorted(drawn, key=lambda each: (-each[2], each[1].median_ms)):
        label = y(value) + 4  # the middle of the letters
        if taken and label < taken[-1] + _LINE:
            label = taken[-1] + _LINE
        taken.append(label)
        place = {"x": x(latency.median_ms), "y": y(value), "label_y": round(label, 2)}
        points.append(LatencyPoint(name=name, ms=latency.median_ms, value=value, is_float=is_float, **place))
    return tuple(sorted(points, key=lambda point: point.ms))


def _circumstances(latencies: Sequence[LatencyRecord]) -> str:
    batches = sorted({latency.batch for latency in latencies})
    threads = sorted({str(latency.threads or "the engine's choice of") for latency in latencies})
    return f"Batch {' and '.join(map(str, batches))}, {' and '.join(threads)} threads."
