"""What a person sees: the resolved configuration, progress, and the headline as the last line of stdout."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def show_configuration(verb: str, options: Any) -> dict[str, Any]:
    """Print the resolved options as YAML that `--config` accepts, and return them."""
    resolved = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(options).items()}
    text = yaml.safe_dump(resolved, sort_keys=False, default_flow_style=None)
    print(f"# repquant {verb}\n{text}", file=sys.stderr, flush=True)
    return resolved


def say(sentence: str) -> None:
    """Tell the person at the keyboard; stdout is kept for results."""
    print(sentence, file=sys.stderr, flush=True)


def show(renderable: Any) -> None:
    """Print a table on stdout, at its full width when stdout is no terminal."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(renderable)


def finish(headline: Mapping[str, Any]) -> None:
    """Print the headline as one line of strict JSON."""
    print(json.dumps(headline, allow_nan=False), flush=True)


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar on stderr while the block runs; yields a function that advances it by a number of items."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(what, total=total, rate="")

        def advance(items: int) -> None:
            bar.advance(task, items)
            speed = bar.tasks[task].speed
            bar.update(task, rate="" if speed is None else f"{speed:.0f}/s")

        yield advance
