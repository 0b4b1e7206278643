"""From option dataclasses to a command-line parser with YAML configuration."""

import dataclasses
import difflib
import inspect
import re
from argparse import ArgumentTypeError
from collections.abc import Collection, Iterable
from typing import Any, NoReturn, get_type_hints

from jsonargparse import ArgumentParser

from repquant.cli.flags import flag_of
from repquant.cli.help import HelpFormatter, explained, metavar
from repquant.errors import visible

_MOST_CHARACTERS = 1000  # of an error

_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false"}

Triple = tuple[float, float, float]


class TripleError(ArgumentTypeError, ValueError):
    """No three numbers. The first base is what parsers show of an option, the second of a configuration."""


class OptionParser(ArgumentParser):
    """A parser whose errors name options as they are typed, and the one that an unknown one resembles most."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=HelpFormatter, **settings)

    def error(self, message: str, *details: Any, **named: Any) -> NoReturn:
        """Exit with status 2 and the message."""
        verb = re.match(r"Subcommand '(.+?)'", message)
        verbs = self._subcommands_action.choices if self._subcommands_action else {}
        known = verbs[verb[1]] if verb else self
        by_place = [
            action.dest for parser in (self, *verbs.values()) for action in parser._actions if not action.option_strings
        ]
        message = with_suggestion(message, [action.dest for action in known._actions])
        sentence = visible(as_typed(message, by_place))
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
    name = nearest and (nearest[0] if unknown[1] else flag_of(nearest[0]))
    return f"{message}; did you mean {name}?" if name else message


def as_typed(message: str, by_place: Collection[str] = ()) -> str:
    """Return a parser's message with options as a person types them, and types in words.

    Args:
        message: of the parser, with the keys of options.
        by_place: keys of arguments that have no flag.
    """
    required = re.fullmatch(r"(the following arguments are required: )(.+)", message)
    if required:
        keys = [key.rpartition(".")[2] for key in required[2].split(", ")]
        return required[1] + ", ".join(key.upper() if key in by_place else flag_of(key) for key in keys)
    refused = re.fullmatch(r'Parser key "(?:[\w-]+\.)?(\w+)":\s*(.*)', message, re.DOTALL)
    if not refused:
        return message
    flag, reason = flag_of(refused[1]), refused[2]
    expected = re.fullmatch(r"Expected an? (.+?)\. Got value: (.*)", reason, re.DOTALL)
    if not expected:
        return f"{flag}: {reason}"
    choices = ", ".join(filter(None, re.findall(r"'([^']*)'", expected[1]))) if "Literal[" in expected[1] else ""
    kind = _KINDS.get(expected[1].removeprefix("<class '").removesuffix("'>"), expected[1])
    return f"{flag} {expected[2]} was given; allowed is {f'one of {choices}' if choices else kind}"


def add_options(parser: ArgumentParser, options: type) -> None:
    """Add `--config` and one dashed option for each field of a dataclass made with `option_ranges.option`.

    Options stand in groups, one for each dataclass that `options` is made of. Fields made with `options.argument` are
    given by their place.
    """
    parser.add_argument("--config", action="config", help="YAML file with any of these options, words joined by _")
    parser.add_argument(
        "--json",
        action="store_true",
        help="print the headline, one line of JSON, on a terminal too, as it is on a pipe",
    )
    hints = get_type_hints(options)
    groups: dict[str, Any] = {}
    for field in dataclasses.fields(options):
        if field.metadata.get("positional"):
            several: dict[str, Any] = {"nargs": "+"} if hints[field.name] == tuple[str, ...] else {}
            kind = str if several else hints[field.name]
            parser.add_argument(field.name, type=kind, help=field.metadata["help"], **several)
            continue
        title = _title(options, field.name)
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        hint = hints[field.name]
        settings: dict[str, Any] = {"type": hint, "help": explained(field)}
        if field.default is dataclasses.MISSING:
            settings["required"] = True
        else:
            settings["default"] = field.default
        if hint == Triple:
            settings["type"] = triple
        if hint is bool:  # `--flag` alone turns it on, and `--flag false` off
            settings |= {"nargs": "?", "const": True}
        else:
            settings["metavar"] = metavar(hint, field)
        groups[title].add_argument(flag_of(field.name), **settings)


def given_at_least(options: type) -> str:
    """Return what a verb can't do without, for its usage."""
    required = [field for field in dataclasses.fields(options) if field.default is dataclasses.MISSING]
    return " ".join(
        field.name.upper() if field.metadata.get("positional") else f"{flag_of(field.name)} {field.name.upper()}"
        for field in required
    )


def _title(options: type, name: str) -> str:
    """Return the first words of the docstring of the most basic dataclass that has a field."""
    owner = next(kind for kind in reversed(options.__mro__) if name in inspect.get_annotations(kind))
    return re.split(r"[.,:;]", owner.__doc__ or "", maxsplit=1)[0].replace("`", "").lower()


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
