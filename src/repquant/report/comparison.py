"""Several runs on the same images, one table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from repquant.report.record import Record
from repquant.report.rows import Row

_HEADINGS = ("top-1 %", "drop", "95 % interval", "agree %", "KL x1000", "minutes")


@dataclass(frozen=True)
class ComparisonRow:
    """A model of a run.

    Attributes:
        name: of the run, and of its calibrator where it has several.
        row: the figures.
        minutes: of work that the run took, for all its models together; None for the float model.
    """

    name: str
    row: Row
    minutes: float | None

    def cells(self) -> tuple[str, ...]:
        """The texts of the table's cells."""
        row = self.row
        return (
            self.name,
            _number(row.top1, 2),
            _number(row.drop, 2),
            "-" if row.drop_ci95 is None else "[{:.2f}, {:.2f}]".format(*row.drop_ci95),
            _number(row.agreement, 2),
            _number(None if row.kl is None else 1000 * row.kl, 2),
            _number(self.minutes, 1),
        )

    def headline(self) -> dict[str, Any]:
        """The figures for a program."""
        row = self.row
        return {
            "name": self.name,
            "runtime": row.runtime,
            "top1": row.top1,
            "drop": row.drop,
            "drop_ci95": row.drop_ci95,
            "agreement": row.agreement,
            "kl": row.kl,
            "minutes": self.minutes,
        }


def comparison_rows(records: Mapping[str, Record]) -> tuple[ComparisonRow, ...]:
    """Return the float row of the first run, and the quantized rows of all, by the names given."""
    rows: list[ComparisonRow] = []
    for name, record in records.items():
        if not rows and record.float_row is not None:
            rows.append(ComparisonRow("float", record.float_row, None))
        minutes = None if record.work_seconds is None else record.work_seconds / 60
        calibrators = {row.calibrator for row in record.results}
        runtimes = {row.runtime for row in record.results}
        for row in record.results:
            parts = [name, row.calibrator if len(calibrators) > 1 else "", row.runtime if len(runtimes) > 1 else ""]
            rows.append(ComparisonRow(", ".join(part for part in parts if part), row, minutes))
    return tuple(rows)


def comparison_table(rows: Sequence[ComparisonRow]) -> Table:
    """Return the rows as a table for a terminal."""
    table = Table(box=SIMPLE_HEAD, padding=0, show_edge=False, pad_edge=False)
    table.add_column("", no_wrap=True)
    for heading in _HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row.cells())
    return table


def comparison_markdown(rows: Sequence[ComparisonRow], config: Mapping[str, Any], notes: Sequence[str] = ()) -> str:
    """Return the rows as a Markdown table, with notes and the settings that they have in common."""
    cells = [("", *_HEADINGS), ("---", *("---:" for _ in _HEADINGS)), *(row.cells() for row in rows)]
    lines = [f"| {' | '.join(texts)} |" for texts in cells]
    settings = ", ".join(f"{name} {value}" for name, value in config.items() if value not in ("", None))
    return "\n".join([*lines, "", *(f"- {note.strip()}" for note in notes), f"- Settings: {settings}.", ""])


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
