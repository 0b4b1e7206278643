"""From option dataclasses to a command-line parser with YAML configuration."""

import dataclasses
from typing import Any, get_type_hints

from jsonargparse import ArgumentParser


def add_options(parser: ArgumentParser, options: type) -> None:
    """Add `--config` and one dashed option for each field of a dataclass made with `options.option`."""
    parser.add_argument("--config", action="config", help="YAML file with any of these options, words joined by _")
    hints = get_type_hints(options)
    for field in dataclasses.fields(options):
        flag = f"--{field.name.replace('_', '-')}"
        settings: dict[str, Any] = {"type": hints[field.name], "help": field.metadata["help"]}
        if field.default is dataclasses.MISSING:
            settings["required"] = True
        else:
            settings["default"] = field.default
        if hints[field.name] is bool:
            _add_switch(parser, flag, settings)
        else:
            parser.add_argument(flag, **settings)


def _add_switch(parser: ArgumentParser, flag: str, settings: dict[str, Any]) -> None:
    """Add a boolean that `--flag` alone turns on, and `--flag false` off."""
    parser.add_argument(flag, nargs="?", const=True, **settings)
