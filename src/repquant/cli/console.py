"""What a person sees: the resolved configuration, progress, and the headline as the last line of stdout."""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Protocol

import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from repquant.cli.flags import with_flags
from repquant.errors import visible


def show_configuration(verb: str, options: Any) -> dict[str, Any]:
    """Print the resolved options as YAML that `--config` accepts, and return them."""
    resolved = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(options).items()}
    text = yaml.safe_dump(resolved, sort_keys=False, default_flow_style=None)
    print(f"# repquant {verb}\n{text}", file=sys.stderr, flush=True)
    return resolved


def say(sentence: str) -> None:
    """Tell the person at the keyboard; stdout is kept for results."""
    print(visible(with_flags(sentence)), file=sys.stderr, flush=True)


def show(renderable: Any) -> None:
    """Print a table on stdout, at its full width when stdout is no terminal."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(renderable)


def finish(headline: Mapping[str, Any]) -> None:
    """Print the headline as one line of strict JSON."""
    print(json.dumps(headline, allow_nan=False), flush=True)


class Advance(Protocol):
    """Move a bar on."""

    def __call__(self, items: int, note: str = "") -> None:
        """By a number of items; what there is to say besides follows the speed."""


@contextmanager
def progress(what: str, total: int, *, shown: bool = True) -> Iterator[Advance]:
    """Show a bar on stderr while the block runs; yields a function that advances it by a number of items.

    Args:
        what: is done.
        total: of the items.
        shown: false for a process that does not speak for all.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not (shown and sys.stderr.isatty())) as bar:
        task = bar.add_task(what, total=total, rate="", note="")

        def advance(items: int, note: str = "") -> None:
            bar.advance(task, items)
            speed = bar.tasks[task].speed
            bar.update(task, rate="" if speed is None else f"{speed:.0f}/s", note=note)

        yield advance
