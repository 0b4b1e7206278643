"""The library's messages in the words of the command line: `weight_bits=7` is --weight-bits 7 there."""

import re
from ast import literal_eval
from dataclasses import fields
from functools import cache

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
    flag = _flags().get(name)
    if flag is None:
        return argument[0]
    return flag if value in (None, "True") else f"{flag} {_plain(value)}"


def _plain(value: str) -> str:
    try:
        constant = literal_eval(value)
    except (SyntaxError, ValueError):
        return value
    return constant if isinstance(constant, str) else value.lower() if isinstance(constant, bool) else value


@cache
def _flags() -> dict[str, str]:
    """Return the flag of every argument: of options, and of what the library calls otherwise."""
    options = [field for verb in VERBS for field in fields(module_of(verb).Options)]
    return {name: flag_of(each.name) for each in options for name in (each.name, each.metadata.get("argument")) if name}
