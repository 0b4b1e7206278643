"""Arguments and configurations before they are parsed: what takes a parser for ever, or all memory, is refused."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import yaml

from repquant.errors import InputError, shortened
from repquant.regular_files import read_regular

_MOST_BYTES = 2**16
_MOST_DEPTH = 8
_MOST_CHARACTERS = 2**13  # of an argument; a path has half of it
_CONFIG = "--config"


def check_arguments(arguments: Sequence[str]) -> None:
    """Accept arguments and the files that they name as configurations.

    Raises:
        InputError: an argument is too long, a configuration can't be read, is no regular file or no text in UTF-8, or
            what either holds is nested deeply or repeats itself by aliases.
    """
    for argument in arguments:
        if len(argument) > _MOST_CHARACTERS:
            raise InputError(f"an argument has {len(argument):,} characters; {_MOST_CHARACTERS:,} are the most")
        if not argument.isprintable() and any(ord(character) < 32 for character in argument):
            raise InputError(f"control characters are not allowed in arguments: {shortened(argument)}")
    for argument, following in pairwise([*arguments, ""]):
        if argument == _CONFIG:
            _check_configuration(following)
        elif argument.startswith(f"{_CONFIG}="):
            _check_configuration(argument.removeprefix(f"{_CONFIG}="))
        else:
            _check_nesting(argument, argument)


def _check_configuration(name: str) -> None:
    path = Path(name)
    try:
        if not (path.exists() or path.is_symlink()):
            return  # the parser says so
        content = read_regular(path, _MOST_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"configuration {path} is no text in UTF-8") from error
    except OSError as error:
        raise InputError(f"can't read configuration {path}: {error.strerror}") from error
    _check_nesting(content, f"configuration {path}")


def _check_nesting(text: str, name: str) -> None:
    if not any(character in text for character in "[{*&-"):
        return
    depth = 0
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise InputError(f"{shortened(name)} refers to other parts of itself, which is not allowed")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _MOST_DEPTH:
                raise InputError(f"{shortened(name)} is nested too deeply")
    except yaml.YAMLError:
        pass  # the parser says what is wrong, if it is to be YAML at all
