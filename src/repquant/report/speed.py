"""The tables of a benchmark: the files side by side, and the layers that take the time."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from rich.box import SIMPLE_HEAD
from rich.table import Table

from repquant.bench.measurement import Measurement
from repquant.runtimes.layer_time import LayerTime

_NONE = "-"


@dataclass(frozen=True)
class _Column:
    """A figure of each row: its heading in two lines, name and unit, and its text."""

    heading: str
    text: Callable[[Measurement], str]


def _number(value: float | None, digits: int) -> str:
    return _NONE if value is None else f"{value:,.{digits}f}"


def _ratio(row: Measurement) -> str:
    if row.ratio is None or row.ratio_ci95 is None:
        return _NONE
    low, high = row.ratio_ci95
    return f"{row.ratio:.2f} [{low:.2f}, {high:.2f}]"


COLUMNS = (
    _Column("median\nms", lambda row: _number(row.median_ms, 2)),
    _Column("p95\nms", lambda row: _number(row.p95_ms, 2)),
    _Column("times float's\n[95 %]", _ratio),
    _Column("images\nper s", lambda row: _number(row.images_per_second, 0)),
    _Column("GMAC\nper s", lambda row: _number(row.gmacs_per_second, 1)),
    _Column("of peak\n%", lambda row: _number(row.peak_share, 0)),
    _Column("memory\nMB", lambda row: _number(row.memory_mb, 0)),
    _Column("in float\n%", lambda row: _number(row.float_share, 0)),
)
"""What is said of every file; the last one is of the time, by the engine's profiler."""


def screen_tables(rows: Sequence[Measurement]) -> Iterator[Table]:
    """Yield a table for a terminal for each runtime, number of threads and batch; 80 columns of text hold it."""
    for setting, group in groupby(rows, key=_setting):
        table = Table(box=SIMPLE_HEAD, padding=0, show_edge=False, pad_edge=False, title=setting)
        table.add_column("", no_wrap=True)
        for column in COLUMNS:
            table.add_column(column.heading, justify="right", no_wrap=True)
        for row in group:
            table.add_row(row.model, *(column.text(row) for column in COLUMNS))
        yield table


def markdown_table(rows: Sequence[Measurement]) -> str:
    """Return the rows as a Markdown table."""
    headings = ["runs in", "model", *(" ".join(column.heading.split()) for column in COLUMNS)]
    body = [[_setting(row), row.model, *(column.text(row) for column in COLUMNS)] for row in rows]
    lines = [headings, ["---", "---", *("---:" for _ in COLUMNS)], *body]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def layer_table(row: Measurement, count: int) -> Table:
    """Return the layers of a file that take the most time, for a terminal."""
    total = sum(layer.milliseconds for layer in row.layers)
    table = Table(box=SIMPLE_HEAD, padding=0, show_edge=False, pad_edge=False, title=f"{row.model}, {_setting(row)}")
    for heading in ("layer", "kernel", "computes in"):
        table.add_column(heading)
    for heading in ("ms", "%"):
        table.add_column(heading, justify="right", no_wrap=True)
    for layer in slowest(row.layers, count):
        share = 100 * layer.milliseconds / total if total else 0.0
        table.add_row(layer.name, layer.kind, layer.precision, f"{layer.milliseconds:.3f}", f"{share:.1f}")
    return table


def slowest(layers: Sequence[LayerTime], count: int) -> list[LayerTime]:
    """Return the layers that take the most time, those first."""
    return sorted(layers, key=lambda layer: -layer.milliseconds)[:count]


def _setting(row: Measurement) -> str:
    threads = "" if row.threads is None else f", {row.threads} thread{'s' if row.threads > 1 else ''}"
    return f"{row.runtime}{threads}, batch {row.batch}"
