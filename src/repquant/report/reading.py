"""Dataclasses out of JSON files, field by field: what is in a file may come from anybody."""

import json
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from math import isfinite
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from repquant.atomic import replace_file
from repquant.errors import InputError, shortened
from repquant.regular_files import read_regular

T = TypeVar("T")

_MOST_BYTES = 2**26
"""Of a file; a run of a thousand layers has a hundredth of it."""
_LARGEST = 10**300  # integers beyond it are no floats
_NAMES = {int: "an integer", str: "a text", bool: "true or false"}


def write_text(text: str, path: Path) -> None:
    """Write a file, whole or not at all.

    Raises:
        InputError: the folder of `path` does not exist or can't be written.
    """
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_file(path: Path, parse: Callable[[str], T], what: str, source: str) -> T:
    """Read a file that holds one object.

    Args:
        path: of the file.
        parse: gives the object, or raises ValueError.
        what: the file is to be, for a message: "a record of a run".
        source: where to get one: "the result.json of a run".

    Raises:
        InputError: there is no such file, or `parse` refuses what it holds; the message names the file.
    """
    try:
        return parse(read_regular(path, _MOST_BYTES).decode("utf-8"))
    except OSError as error:
        raise InputError(f"can't read {path}: {error.strerror}; give {source}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not {what}: {error}; give {source}") from error


def parsed(kind: type[T], text: str, schema_version: int) -> T:
    """Return the dataclass that JSON holds.

    Args:
        kind: of the dataclass. Its fields are numbers, strings, dataclasses, and tuples or dictionaries of these.
        text: JSON.
        schema_version: that the JSON has to have.

    Raises:
        ValueError: the text is not JSON, has another schema version, or a field that does not fit; it is named.
    """
    data = json.loads(text, parse_constant=_refuse_constant)
    found = data.get("schema_version") if isinstance(data, dict) else None
    if found != schema_version:
        raise ValueError(f"schema version {found}; this program reads version {schema_version}")
    return built(kind, data)


def built(kind: type[T], data: Any, where: str = "") -> T:
    """Return the dataclass whose fields a JSON object has, every one with its type.

    Args:
        kind: of the dataclass.
        data: as `json` reads it.
        where: it stands in the file, for messages.

    Raises:
        ValueError: a field that is unknown, missing or of another type.
    """
    if not isinstance(data, dict):
        _refuse(where, data, "an object")
    assert is_dataclass(kind)
    prefix, hints, known = f"{where}." if where else "", get_type_hints(kind), fields(kind)
    if unknown := data.keys() - {field.name for field in known}:
        raise ValueError(f"fields do not fit: {prefix}{shortened(min(unknown))} is unknown")
    for field in known:
        if field.name not in data and field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"fields do not fit: {prefix}{field.name} is missing")
    values = {name: _value(hints[name], value, f"{prefix}{name}") for name, value in data.items()}
    return kind(**values)


def _value(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, UnionType):
        (other,) = (each for each in arguments if each is not NoneType)
        return None if value is None else _value(other, value, where)
    if is_dataclass(hint):
        assert isinstance(hint, type)
        return built(hint, value, where)
    if origin is tuple:
        return _items(arguments, value, where)
    if origin is dict:
        if not isinstance(value, dict):
            _refuse(where, value, "an object")
        return {name: _value(arguments[1], each, f"{where}.{shortened(name)}") for name, each in value.items()}
    return _plain(hint, value, where)


def _items(hints: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        _refuse(where, value, "a list")
    if hints[-1] is Ellipsis:
        hints = (hints[0],) * len(value)
    if len(value) != len(hints):
        raise ValueError(f"fields do not fit: {where} has {len(value)} items, not {len(hints)}")
    return tuple(
        _value(hint, each, f"{where}[{place}]") for place, (hint, each) in enumerate(zip(hints, value, strict=True))
    )


def _plain(kind: type, value: Any, where: str) -> Any:
    if kind is float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or abs(value) > _LARGEST or not isfinite(value):
            _refuse(where, value, "a finite number")
        return float(value)
    if type(value) is not kind:
        _refuse(where, value, _NAMES[kind])
    return value


def _refuse(where: str, value: Any, expected: str) -> NoReturn:
    raise ValueError(f"fields do not fit: {where or 'the file'} is {shortened(json.dumps(value))}, not {expected}")


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
