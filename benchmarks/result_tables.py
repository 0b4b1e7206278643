"""Tables of a benchmark, on the screen and in Markdown."""

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table as ScreenTable

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]
"""The columns and the rows."""


def show(tables: Iterable[Table], width: int = 120) -> None:
    console = Console(width=width)
    for columns, rows in tables:
        table = ScreenTable(*columns)
        for row in rows:
            table.add_row(*row)
        console.print(table)


def markdown_lines(tables: Iterable[Table]) -> list[str]:
    lines: list[str] = []
    for columns, rows in tables:
        rule: Sequence[str] = ["---"] * len(columns)
        lines += [f"| {' | '.join(cells)} |" for cells in (columns, rule, *rows)] + [""]
    return lines
