"""Pages about the options, made from the same definitions as `--help`."""

import dataclasses
from collections.abc import Iterable
from importlib import import_module
from typing import Any, get_type_hints

from repquant.cli.help import explained, metavar
from repquant.cli.main import build_parser
from repquant.cli.verbs import VERBS


def verb_table() -> str:
    """Return the verbs and what each does, with a link to its page."""
    rows = (f"| [`{verb}`](command-line/{verb}.md) | {_cell(summary)} |" for verb, summary in VERBS.items())
    return "\n".join(["| verb | what it does |", "| --- | --- |", *rows])


def verb_page(verb: str) -> str:
    """Return the page of a verb: what it does, an example, and every option in the groups of `--help`."""
    parser = build_parser(verb)._subcommands_action.choices[verb]
    example = parser.epilog.removeprefix("example:\n").strip()
    parts = [f"# repquant {verb}", _paragraphs(parser.description), f"```shell\n{example}\n```"]
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if action.dest != "help"]
        if actions:
            parts += [f"## {(group.title or '').capitalize()}", _table(actions)]
    return "\n\n".join(parts) + "\n"


def field_table(path: str) -> str:
    """Return the options of a dataclass made with `option_ranges.option`: name, values, and what each is.

    Args:
        path: of the dataclass, `module.Class`.
    """
    module, _, name = path.rpartition(".")
    kind = getattr(import_module(module), name)
    hints = get_type_hints(kind)
    rows = [
        f"| `{field.name}` | `{_cell(metavar(hints[field.name], field))}` | {_cell(explained(field))} |"
        for field in dataclasses.fields(kind)
        if "help" in field.metadata
    ]
    return "\n".join(["| option | values | what it is |", "| --- | --- | --- |", *rows])


def _table(actions: Iterable[Any]) -> str:
    rows = []
    for action in actions:
        name = ", ".join(action.option_strings) or action.dest.upper()
        value = action.metavar if action.option_strings and action.metavar else ""
        rows.append(f"| `{name}` | {f'`{_cell(str(value))}`' if value else ''} | {_cell(action.help or '')} |")
    return "\n".join(["| option | values | what it is |", "| --- | --- | --- |", *rows])


def _paragraphs(text: str) -> str:
    """Return the docstring of a verb as Markdown: what stands in columns stays as it is."""
    parts = (part for part in text.strip().split("\n\n"))
    return "\n\n".join(f"```text\n{part}\n```" if "  " in part.strip() else _escaped(part) for part in parts)


def _cell(text: str) -> str:
    return _escaped(text).replace("|", "\\|").replace("\n", " ")


def _escaped(text: str) -> str:
    return text.replace("<", "&lt;").replace("*", "\\*")
