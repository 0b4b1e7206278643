"""The one exception that speaks to the person at the keyboard."""


class InputError(ValueError):
    """The caller's input can't be used.

    The message says what was given, what is allowed and what to do next. Arguments stand in backticks, as in a call:
    `weight_bits=7`; the command line shows them as its options, without a traceback, and exits with status 2.
    """


_MOST_CHARACTERS = 120


def given(name: str, value: object) -> str:
    """Return an argument as a call has it, in backticks, with a value from outside in a form to show."""
    try:
        return f"`{name}={shortened(repr(value))}`"
    except ValueError:  # Python does not write out integers of thousands of digits
        return f"`{name}` with thousands of digits"


def shortened(text: str) -> str:
    """Return text that comes from a file in a form to show: escape codes made visible, and not too long."""
    rest = f"... ({len(text):,} characters)" if len(text) > _MOST_CHARACTERS else ""
    return visible(text[:_MOST_CHARACTERS], keep="") + rest


def visible(text: str, keep: str = "\n") -> str:
    """Return text in which what a terminal would obey, or could not show, is written out; `keep` stays as it is."""
    return "".join(each if each.isprintable() or each in keep else repr(each)[1:-1] for each in text)
