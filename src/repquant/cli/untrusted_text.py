"""Arguments and configurations: what takes a parser for ever is refused, and so is code that only a file asks for."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from repquant.cli.options import NetworkOptions
from repquant.errors import InputError, shortened
from repquant.plain_yaml import require_plain
from repquant.regular_files import read_regular

_MOST_BYTES = 2**16
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
            require_plain(argument, argument)


def require_code_is_asked_for(options: Any, arguments: Sequence[str]) -> None:
    """Accept a network of the person's own only where the command line names it.

    Raises:
        InputError: a configuration does, which may be somebody else's, and the network is code that would be run.
    """
    is_asked = any(argument == "--model" or argument.startswith("--model=") for argument in arguments)
    if isinstance(options, NetworkOptions) and options.model and not is_asked:
        raise InputError(
            f"model {shortened(options.model)} is code that would be run, and configurations may be from others; give "
            "it on the command line, with --model"
        )


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
    require_plain(content, f"configuration {path}")
