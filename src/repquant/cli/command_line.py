"""The command that a record tells of, as a person would type it."""

import shlex
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from repquant.cli.flags import flag_of
from repquant.cli.verbs import module_of


def command_line(verb: str, configuration: Mapping[str, Any]) -> str:
    """Return the command with every option that is not at its default.

    Args:
        verb: one that has options.
        configuration: name -> value, as a record keeps it; names that the verb does not know are left out.
    """
    options = module_of(verb).Options
    parts = [f"repquant {verb}"]
    for field in fields(options):
        value = configuration.get(field.name)
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        if value is None or (field.default is not MISSING and value == default):
            continue
        text = (
            ",".join(map(str, value))
            if isinstance(value, list)
            else str(value).lower()
            if value is False
            else str(value)
        )
        flag = flag_of(field.name)
        parts.append(flag if value is True else f"{flag} {shlex.quote(text)}")
    return " \\\n    ".join(parts)


def analyze_command(configuration: Mapping[str, Any], output: str | None) -> str:
    """Return the command that analyzes what a run quantized, in the same way and with one calibrator."""
    kept = {name: value for name, value in configuration.items() if name not in ("calibrator", "overwrite")}
    return command_line("analyze", kept | {"output": f"{output or 'run'}/analysis"})
