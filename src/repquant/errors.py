"""The one exception that speaks to the person at the keyboard."""


class InputError(ValueError):
    """The caller's input can't be used.

    The message says what was given, what is allowed and what to do next. The command line prints it without a
    traceback and exits with status 2.
    """


_MOST_CHARACTERS = 120


def shortened(text: str) -> str:
    """Return text that comes from a file in a form to show: escape codes made visible, and not too long."""
    rest = f"... ({len(text):,} characters)" if len(text) > _MOST_CHARACTERS else ""
    return visible(text[:_MOST_CHARACTERS], keep="") + rest


def visible(text: str, keep: str = "\n") -> str:
    """Return text in which what a terminal would obey, or could not show, is written out; `keep` stays as it is."""
    return "".join(each if each.isprintable() or each in keep else repr(each)[1:-1] for each in text)
