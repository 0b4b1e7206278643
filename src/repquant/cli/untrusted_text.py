"""Arguments and configurations: what takes a parser for ever is refused, and so is code that only a file asks for."""

import os
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from repquant.cli.options import NetworkOptions, is_onnx
from repquant.errors import InputError, shortened
from repquant.plain_yaml import require_plain
from repquant.regular_files import read_regular
from repquant.train.recipe import Recipe

_MOST_BYTES = 2**16
_MOST_CHARACTERS = 2**13  # of an argument; a path has half of it


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
        require_plain(argument, argument)
    for path in _configurations(arguments):
        _check_configuration(path)


def require_configurations_stay(options: Any, arguments: Sequence[str]) -> None:
    """Accept an output that replaces no configuration.

    Raises:
        InputError: a configuration is in the folder that would be replaced.
    """
    output = Path(os.path.realpath(getattr(options, "output", "")))
    for path in _configurations(arguments) if getattr(options, "overwrite", False) else ():
        if Path(os.path.realpath(path)).is_relative_to(output):
            raise InputError(f"output {options.output} holds the configuration {path}, which would be lost; move it")


def require_code_is_asked_for(options: Any, arguments: Sequence[str]) -> None:
    """Accept a network of the person's own only where the command line names it.

    Raises:
        InputError: a configuration does, which may be somebody else's, and the network is code that would be run.
    """
    asked = _values_of("--model", arguments)
    is_code = isinstance(options, NetworkOptions | Recipe) and options.model and not is_onnx(options.model)
    if is_code and options.model not in asked:
        raise InputError(
            f"model {shortened(options.model)} is code that would be run, and configurations may be from others; give "
            "it on the command line, with --model"
        )


def _configurations(arguments: Sequence[str]) -> list[Path]:
    return [Path(value) for value in _values_of("--config", arguments)]


def _values_of(flag: str, arguments: Sequence[str]) -> Iterator[str]:
    for argument, following in pairwise([*arguments, ""]):
        if argument == flag:
            yield following
        elif argument.startswith(f"{flag}="):
            yield argument.removeprefix(f"{flag}=")


def _check_configuration(path: Path) -> None:
    try:
        if not (path.exists() or path.is_symlink()):
            return  # the parser says so
        content = read_regular(path, _MOST_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"configuration {path} is no text in UTF-8") from error
    except OSError as error:
        raise InputError(f"can't read configuration {path}: {error.strerror}") from error
    require_plain(content, f"configuration {path}")
