"""What a person sees: the resolved configuration, progress, and the headline as the last line of stdout."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from time import monotonic
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
    """Print a table: on stdout where that is a terminal; else, at full width, on stderr, as a program reads stdout."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=200, stderr=True)
    console.print(renderable)


@dataclass
class _Headline:
    """Whether the headline is also for a terminal, where a person reads the table above it."""

    on_terminals: bool = False


_HEADLINE = _Headline()


def show_headlines(on_terminals: bool) -> None:
    """Set whether `finish` prints on a terminal too, as --json asks."""
    _HEADLINE.on_terminals = on_terminals


def finish(headline: Mapping[str, Any]) -> None:
    """Print the headline as one line of strict JSON; on a terminal only where it was asked for."""
    if _HEADLINE.on_terminals or not sys.stdout.isatty():
        print(json.dumps(headline, allow_nan=False), flush=True)


class Advance(Protocol):
    """Move a bar on."""

    def __call__(self, items: int, note: str = "") -> None:
        """By a number of items; what there is to say besides follows the speed."""


LINE_SECONDS = 15.0
"""Between two lines of progress where no bar can be drawn."""


@contextmanager
def progress(what: str, total: int | None, *, shown: bool = True) -> Iterator[Advance]:
    """Show on stderr how far the block is, as a bar or, where that is no terminal, as a line now and then.

    Yields a function that counts a number of items as done.

    Args:
        what: is done.
        total: of the items; None where it is not known.
        shown: false for a process that does not speak for all.
    """
    if not sys.stderr.isatty():
        yield _lines(what, total) if shown else _nothing
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as bar:
        task = bar.add_task(what, total=total, rate="", note="")

        def advance(items: int, note: str = "") -> None:
            bar.advance(task, items)
            speed = bar.tasks[task].speed
            bar.update(task, rate="" if speed is None else f"{speed:.0f}/s", note=note)

        yield advance


@contextmanager
def steps(totals: Mapping[str, int]) -> Iterator[Callable[[str, int], None]]:
    """Show the steps of one long work as they come, each with a progress of its own.

    Yields a function that is called with the name of a step and what was done of it since the last call.

    Args:
        totals: name of a step -> how much it is in all; others have no end that is known.
    """
    with ExitStack() as shown:
        current: tuple[str, Advance] | None = None

        def advance(step: str, done: int) -> None:
            nonlocal current
            if current is None or current[0] != step:
                shown.close()
                current = step, shown.enter_context(progress(step, totals.get(step)))
            current[1](done)

        yield advance


def _nothing(items: int, note: str = "") -> None:
    pass


def _lines(what: str, total: int | None) -> Advance:
    """Return a function that counts, and says how far it is when `LINE_SECONDS` have passed since it last did."""
    started = said = monotonic()
    done = 0

    def advance(items: int, note: str = "") -> None:
        nonlocal said, done
        done += items
        now = monotonic()
        if now - said < LINE_SECONDS or (total is not None and done >= total):
            return
        said = now
        rate = done / (now - started)
        of_all = "" if total is None else f" of {total:,}"
        left = "" if total is None or not rate else f", {(total - done) / rate:.0f} s left"
        say(f"{what}: {done:,}{of_all}, {rate:.3g}/s{left}{f', {note}' if note else ''}")

    return advance
