"""From option dataclasses to a command-line parser with YAML configuration."""

import dataclasses
import difflib
import re
from argparse import ArgumentTypeError
from collections.abc import Iterable
from typing import Any, NoReturn, get_type_hints

from jsonargparse import ArgumentParser

from repquant.errors import visible

_MOST_CHARACTERS = 1000  # of an error

Triple = tuple[float, float, float]


class TripleError(ArgumentTypeError, ValueError):
    """No three numbers. The first base is what parsers show of an option, the second of a configuration."""


class SuggestingParser(ArgumentParser):
    """A parser whose errors name the option that an unknown one, on the command line or in YAML, resembles most."""

    def error(self, message: str, *details: Any, **named: Any) -> NoReturn:
        """Exit with status 2 and the message."""
        verb = re.match(r"Subcommand '(.+?)'", message)
        verbs = self._subcommands_action.choices if self._subcommands_action else {}
        known = verbs[verb[1]] if verb else self
        sentence = visible(with_suggestion(message, [action.dest for action in known._actions]))
        if len(sentence) > _MOST_CHARACTERS:  # it repeats a value of any length
            sentence = f"{sentence[:_MOST_CHARACTERS]}... ({len(sentence):,} characters)"
        super().error(sentence, *details, **named)


def with_suggestion(message: str, keys: Iterable[str]) -> str:
    """Add the nearest key to a message about an unknown one."""
    unknown = re.search(r"does not accept option '([\w.-]+)'|unrecognized arguments: --([\w-]+)", message)
    if not unknown:
        return message
    key = (unknown[1] or unknown[2]).replace("-", "_")
    nearest = difflib.get_close_matches(key, sorted(set(keys)), n=1)
    name = nearest and (nearest[0] if unknown[1] else f"--{nearest[0].replace('_', '-')}")
    return f"{message}; did you mean {name}?" if name else message


def add_options(parser: ArgumentParser, options: type) -> None:
    """Add `--config` and one dashed option for each field of a dataclass made with `options.option`.

    Fields made with `options.argument` are given by their place.
    """
    parser.add_argument("--config", action="config", help="YAML file with any of these options, words joined by _")
    hints = get_type_hints(options)
    for field in dataclasses.fields(options):
        if field.metadata.get("positional"):
            several: dict[str, Any] = {"nargs": "+"} if hints[field.name] == tuple[str, ...] else {}
            kind = str if several else hints[field.name]
            parser.add_argument(field.name, type=kind, help=field.metadata["help"], **several)
            continue
        flag = f"--{field.name.replace('_', '-')}"
        settings: dict[str, Any] = {"type": hints[field.name], "help": field.metadata["help"]}
        if field.default is dataclasses.MISSING:
            settings["required"] = True
        else:
            settings["default"] = field.default
        if hints[field.name] == Triple:
            settings["type"] = triple
        if hints[field.name] is bool:
            _add_switch(parser, flag, settings)
        else:
            parser.add_argument(flag, **settings)


def triple(value: Any) -> Triple:
    """Read three numbers: with commas, in brackets or not, or as a list of a configuration.

    Raises:
        TripleError: it is something else.
    """
    parts = value.strip("[]() ").split(",") if isinstance(value, str) else value
    try:
        red, green, blue = (float(part) for part in parts)
    except (TypeError, ValueError, OverflowError) as error:
        raise TripleError("expected three numbers, for example 0.5,0.5,0.5") from error
    return red, green, blue


def _add_switch(parser: ArgumentParser, flag: str, settings: dict[str, Any]) -> None:
    """Add a boolean that `--flag` alone turns on, and `--flag false` off."""
    parser.add_argument(flag, nargs="?", const=True, **settings)
