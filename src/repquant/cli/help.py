"""How `--help` looks: what an option is, its range and default in a few words, and paragraphs as they were written."""

import dataclasses
import re
import textwrap
from typing import Any, Literal, get_args, get_origin

from jsonargparse import DefaultHelpFormatter

from repquant.option_ranges import Names, Numbers

_WORTH_SAYING = 10**6
"""A range that ends above says nothing to a person."""

Field = dataclasses.Field[Any]


class HelpFormatter(DefaultHelpFormatter):
    """Paragraphs are filled one by one; those with columns or commands stay as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = re.split(r"\n\s*\n", text.strip("\n"))
        return "\n\n".join(
            textwrap.indent(part, indent)
            if "  " in part
            else textwrap.fill(part, width, initial_indent=indent, subsequent_indent=indent)
            for part in paragraphs
        )

    def _get_help_string(self, action: Any) -> str:
        return "" if action.help is None else str(action.help)


def explained(field: Field) -> str:
    """Return the help of an option, with its range and default."""
    text: str = field.metadata["help"]
    allowed = field.metadata.get("allowed")
    details = []
    if isinstance(allowed, Names) or (isinstance(allowed, Numbers) and allowed.most < _WORTH_SAYING):
        details.append(str(allowed))
    if field.default is dataclasses.MISSING:
        details.append("required")
    elif field.default is not False and field.default != "":
        details.append(f"default: {_typed(field.default)}")
    return text + (f" ({'; '.join(details)})" if details else "")


def metavar(hint: Any, field: Field) -> str:
    """Return what stands for the value of an option."""
    if get_origin(hint) is Literal:
        return f"{{{','.join(filter(None, get_args(hint)))}}}"
    if isinstance(field.metadata.get("allowed"), Names):
        return "NAMES"
    return {int: "N", float: "X", str: field.name.upper()}.get(hint, "R,G,B")


def _typed(value: Any) -> str:
    return (
        ",".join(map(str, value)) if isinstance(value, tuple) else str(value).lower() if value is True else str(value)
    )
