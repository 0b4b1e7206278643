"""Write a page about a run, or about several side by side: what was lost, where, and what to do.

The page is one file that needs no network: it can be sent by mail and printed. A run is the folder that ptq, quantize,
qat or analyze wrote; what a run does not hold is left out of the page, with a sentence that says how to get it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from repquant.cli.console import finish, say, show_configuration
from repquant.cli.options import argument
from repquant.option_ranges import option

if TYPE_CHECKING:
    from repquant.report.run import Run
EXAMPLE = "repquant report runs/demo --output report.html"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `repquant report`."""

    runs: tuple[str, ...] = argument("folders of runs; also the result.json or analysis.json in them")
    output: str = option("page to write, .html")
    overwrite: bool = option("replace the page if it exists", False)


def run(options: Options) -> None:
    """Run the verb."""
    show_configuration("report", options)
    from repquant.cli.outputs import output_file
    from repquant.report.run import read_runs

    path = output_file(options, (".html",))
    finish(write_page(read_runs([Path(name) for name in options.runs]), path))


def write_page(runs: list[Run], path: Path) -> dict[str, object]:
    """Write a page with the commands that repeat the runs, and return its headline."""
    from repquant.report.page import html
    from repquant.report.reading import write_text
    from repquant.report.verdict import verdict

    text = html([_with_commands(each) for each in runs])
    write_text(text, path)
    verdicts = {each.name: verdict(each) for each in runs}
    for name, judged in verdicts.items():
        say(f"{name}: {judged.lost}")
    return {
        "output": str(path),
        "bytes": len(text.encode()),
        "runs": [
            {"name": name, "lost": judged.lost, "within_noise": judged.within_noise}
            for name, judged in verdicts.items()
        ],
    }


def _with_commands(each: Run) -> Run:
    from repquant.cli.command_line import analyze_command, command_line
    from repquant.cli.verbs import VERBS

    source = each.source
    verb = "analyze" if each.record is None else each.record.command
    if source is None or verb not in VERBS:
        return each
    return replace(
        each,
        command=command_line(verb, source.config),
        analyze=analyze_command(source.config, source.output) if each.analysis is None else None,
    )
