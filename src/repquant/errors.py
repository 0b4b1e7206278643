"""The one exception that speaks to the person at the keyboard."""


class InputError(ValueError):
    """The caller's input can't be used.

    The message says what was given, what is allowed and what to do next. The command line prints it without a
    traceback and exits with status 2.
    """
