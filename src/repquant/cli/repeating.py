"""A run again: `--config result.json` takes the options that the run of this record had."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_FLAG = "--config"


def with_recorded_options(arguments: Sequence[str]) -> list[str]:
    """Return the arguments, records that are given as configurations replaced by the options in them.

    What is no record is left to the parser.
    """
    expanded: list[str] = []
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if equals and flag == _FLAG:
            expanded.append(f"{_FLAG}={_options_in(value)}")
        else:
            expanded.append(_options_in(argument) if expanded and expanded[-1] == _FLAG else argument)
    return expanded


def _options_in(path: str) -> str:
    """Return the options in a record as JSON, which the parser takes like the name of a file; the path of another."""
    if not path.endswith(".json") or not Path(path).is_file():
        return path
    try:
        record: Any = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return path
    is_record = isinstance(record, dict) and "schema_version" in record and isinstance(record.get("config"), dict)
    return json.dumps(record["config"]) if is_record else path
