"""YAML that is read in a time and a memory in proportion to its length."""

import yaml

from repquant.errors import InputError, shortened

_MOST_DEPTH = 8


def require_plain(text: str, name: str) -> None:
    """Accept what is no YAML at all, or YAML that is nested a little and never refers to a part of itself.

    A parser recurses into what is nested, and aliases and merged keys stand for texts of any length.

    Args:
        text: to look at.
        name: what an error calls it.

    Raises:
        InputError: it is nested deeply, or has an alias.
    """
    if not any(character in text for character in "[{*&-:?"):
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
