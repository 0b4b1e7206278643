"""The table of a run, on screen and in Markdown, from the same cells."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from rich.box import SIMPLE_HEAD
from rich.table import Table

from repquant.report.record import Record
from repquant.report.rows import Row

_NONE = "-"
_BYTES_PER_MB = 1_000_000


@dataclass(frozen=True)
class Column:
    """A figure of each row: its heading in two lines, name and unit, and its text."""

    heading: str
    text: Callable[[Row], str]


def screen_table(record: Record, columns: Sequence[Column]) -> Table:
    """Return the record's rows as a table for a terminal, grouped by calibrator; 80 columns of text hold it."""
    table = Table(box=SIMPLE_HEAD, padding=0, show_edge=False, pad_edge=False)
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column.heading, justify="right", no_wrap=True)
    for group, rows in groupby(record.rows, key=lambda row: _group(record, row)):
        table.add_row(group)
        for row in rows:
            table.add_row(f" {_engine(row)}", *(column.text(row) for column in columns))
    return table


def comparison(record: Record) -> Sequence[Column]:
    """Return the columns that compare the models of a record, with latency where it was measured."""
    return LATENCY if any(row.latency_ms is not None for row in record.rows) else COMPARISON


def trail_table(record: Record) -> Table:
    """Return what a search tried as a table for a terminal."""
    table = Table(box=SIMPLE_HEAD, padding=0, show_edge=False, pad_edge=False)
    table.add_column("tried")
    for heading in ("expected\ndrop", "agree\n%", "KL\nx1000", "time\ns", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    for attempt in record.trail:
        table.add_row(
            attempt.name,
            f"{attempt.expected_drop:.3f}",
            _number(attempt.agreement, 2),
            _number(attempt.kl, 2, factor=1000),
            f"{attempt.seconds:.0f}",
            " <" if attempt.chosen else "",
        )
    return table


def markdown_table(record: Record, columns: Sequence[Column]) -> str:
    """Return the record's rows as a Markdown table."""
    headings = ["model", "runs in", *(" ".join(column.heading.split()) for column in columns)]
    alignment = ["---", "---", *("---:" for _ in columns)]
    body = [[_group(record, row), _engine(row), *(column.text(row) for column in columns)] for row in record.rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [headings, alignment, *body])


def markdown_section(record: Record, columns: Sequence[Column], title: str) -> str:
    """Return the table under a title, with the images, the hardware and the versions it was measured with."""
    lines = [f"{_images(record)}.", f"{_hardware(record)}.", *record.notes]
    return f"## {title}\n\n{markdown_table(record, columns)}\n" + "".join(f"- {line}\n" for line in lines)


def _group(record: Record, row: Row) -> str:
    return row.calibrator or ("float" if row is record.float_row else "as given")


def _engine(row: Row) -> str:
    return "simulated" if row.runtime == "pytorch" and row.calibrator is not None else row.runtime


def _interval(ends: tuple[float, float] | None) -> str:
    return _NONE if ends is None else "[{:.2f}, {:.2f}]".format(*ends)


def _number(value: float | None, digits: int, factor: float = 1.0) -> str:
    return _NONE if value is None else f"{value * factor:.{digits}f}"


def _images(record: Record) -> str:
    count = max((row.images for row in record.rows), default=0)
    parts = [f"{count:,} images evaluated"]
    if record.skipped:
        parts.append(f"{len(record.skipped):,} unreadable skipped")
    if record.calibration is not None:
        parts.append(f"{record.calibration.images:,} for calibration (seed {record.calibration.seed})")
    return ", ".join(parts)


def _hardware(record: Record) -> str:
    facts = record.environment
    packages = {"repquant": facts["repquant"], "python": facts["python"], **facts["packages"]}
    versions = ", ".join(f"{name} {version}" for name, version in packages.items() if version is not None)
    flags = f" ({', '.join(facts['cpu_int8_flags'])})" if facts["cpu_int8_flags"] else ""
    kernels = "".join(
        f"; {engine} multiplied integers with {', '.join(names)}"
        for engine, names in facts.get("integer_kernels", {}).items()  # older records have none
    )
    return f"{facts['cpu'] or facts['machine']}{flags}, {facts['cores']} cores; {versions}{kernels}"


_TOP1 = Column("top-1\n%", lambda row: _number(row.top1, 2))
_TIME = Column("time\ns", lambda row: _number(row.seconds, 1))
_SIZE = Column("size\nMB", lambda row: _number(row.file_bytes, 2, factor=1 / _BYTES_PER_MB))

OUTPUT = Column("output\n", lambda row: row.output or _NONE)
METRIC = Column("metric\n", lambda row: _number(row.metric, 4))

COMPARISON = (
    _TOP1,
    Column("drop\n", lambda row: _number(row.drop, 2)),
    Column("95 %\ninterval", lambda row: _interval(row.drop_ci95)),
    Column("agree\n%", lambda row: _number(row.agreement, 2)),
    Column("KL\nx1000", lambda row: _number(row.kl, 2, factor=1000)),
    Column("SQNR\ndB", lambda row: _number(row.sqnr_db, 1)),
    Column("parity\n%", lambda row: _number(row.parity, 2)),
    Column("max\nsteps", lambda row: _number(row.max_logit_steps, 2)),
    _TIME,
    _SIZE,
)
"""What quantization cost: accuracy against the float model, and parity with the simulation."""

LATENCY = (
    *(column for column in COMPARISON if column not in (_TIME, _SIZE)),
    Column("latency\nms", lambda row: _number(row.latency_ms, 2)),
    Column("times\nfloat's", lambda row: _number(row.latency_ratio, 2)),
)
"""The same with the latency of one image, and without the time over all of them."""

ACCURACY = (
    _TOP1,
    Column("95 %\ninterval", lambda row: _interval(row.top1_ci95)),
    Column("top-5\n%", lambda row: _number(row.top5, 2)),
    Column("images\nper s", lambda row: _number(row.images_per_second, 0)),
    _TIME,
    _SIZE,
)
"""What models reach by themselves, and how fast."""
