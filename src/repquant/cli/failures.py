"""What a verb that fails says, in a sentence, and the status that it exits with."""

import os
import sys
import tempfile
import traceback
from collections.abc import Sequence

from repquant import __version__
from repquant.cli.flags import with_flags
from repquant.errors import InputError, shortened, visible
from repquant.train.stopping import StoppedError

EXIT_DONE, EXIT_ERROR, EXIT_INPUT, EXIT_STOPPED = 0, 1, 2, os.EX_TEMPFAIL

_MOST_CHARACTERS = 4000
"""Of a sentence: names in files are of any length, and so many of them may be wrong."""

_NO_MEMORY = ("allocate memory", "bad_alloc", "bad allocation", "out of memory", "std::length_error")


def explain(error: BaseException, verb: str, arguments: Sequence[str]) -> int:
    """Say on stderr what went wrong, and return the exit status.

    Args:
        error: what ended the verb.
        verb: its name, "" where none was chosen yet.
        arguments: what the person gave, for a report.
    """
    status, sentence = _sentence(error, arguments)
    if len(sentence) > _MOST_CHARACTERS and status == EXIT_INPUT:
        sentence = f"{sentence[:_MOST_CHARACTERS]}... ({len(sentence):,} characters)"
    print(visible(f"{f'repquant {verb}'.strip()}: {with_flags(sentence)}"), file=sys.stderr)
    return status


def _sentence(error: BaseException, arguments: Sequence[str]) -> tuple[int, str]:
    if isinstance(error, InputError | FloatingPointError):  # the logits of a model that was given are no numbers
        return EXIT_INPUT, str(error)
    if isinstance(error, StoppedError):
        return EXIT_STOPPED, str(error)
    if isinstance(error, KeyboardInterrupt):
        return EXIT_ERROR, "interrupted; no output was written"
    if isinstance(error, OSError):
        return EXIT_ERROR, str(error)
    if isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY):
        return EXIT_ERROR, f"the memory is not enough ({_first_line(error)}); lower --batch-size or --image-size"
    return EXIT_ERROR, (
        f"this is a fault of repquant, not yours: {type(error).__name__}: {_first_line(error)}. "
        f"{_report(error, arguments)}"
    )


def _first_line(error: BaseException) -> str:
    return shortened((str(error).strip().splitlines() or [type(error).__name__])[0])


def _report(error: BaseException, arguments: Sequence[str]) -> str:
    """Write down all that is known, and say where."""
    lines = [f"repquant {__version__}, Python {sys.version}, {sys.platform}", f"arguments: {list(arguments)}", ""]
    text = "\n".join(lines) + "".join(traceback.format_exception(error))
    try:
        handle, name = tempfile.mkstemp(prefix="repquant-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as stream:
            stream.write(text)
    except OSError:
        return f"A report could not be written, so here it is:\n{text}"
    return f"The full report is in {name}; please send it with what you did"
