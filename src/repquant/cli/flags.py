"""The library's messages in the words of the command line: `weight_bits=7` is --weight-bits 7 there."""

import re
from ast import literal_eval
from dataclasses import fields
from functools import cache
from typing import get_type_hints

from repquant.cli.verbs import VERBS, module_of

_ARGUMENT = re.compile(r"""`([a-z]\w*)(?:=('[^']*'|"[^"]*"|[^`]*))?`""")


def flag_of(name: str) -> str:
    """Return the flag of an option."""
    return f"--{name.replace('_', '-')}"


def with_flags(message: str) -> str:
    """Return a message in which each argument that is an option of some verb stands as a person types it.

    Arguments are in backticks, with or without a value; others stay as they are.
    """
    return _ARGUMENT.sub(_typed, message)


def _typed(argument: re.Match[str]) -> str:
    name, value = argument.groups()
    if name not in _options():
        return argument[0]
    option, is_switch = _options()[name]
    flag = flag_of(option)
    return flag if value is None or (is_switch and value == "True") else f"{flag} {_plain(value, is_switch)}"


def _plain(value: str, is_switch: bool) -> str:
    """Return a value of Python as a person types it."""
    if value in ("True", "False"):
        return value.lower() if is_switch else {"True": "yes", "False": "no"}[value]
    try:
        constant = literal_eval(value)
    except (SyntaxError, ValueError):  # of NaN and infinity
        return value.strip("()").replace(", ", ",") if value.startswith("(") else value
    if isinstance(constant, tuple):
        return ",".join(map(str, constant))
    return constant if isinstance(constant, str) else value


@cache
def _options() -> dict[str, tuple[str, bool]]:
    """Return, of every argument, the option and whether that is a switch: of what the library calls otherwise, too."""
    found = {}
    for options in (module_of(verb).Options for verb in VERBS):
        hints = get_type_hints(options)
        for field in fields(options):
            for name in (field.name, field.metadata.get("argument")):
                if name and (name == field.name or name not in found):
                    found[name] = field.name, hints[field.name] is bool
    return found
