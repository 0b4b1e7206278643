"""Which values an option may have: declared with the option, as metadata of its dataclass field, checked in one place.

    @dataclass(frozen=True, kw_only=True)
    class Options:
        batch_size: int = field(default=32, metadata={"help": "images a batch", "allowed": Numbers(1, 65536)})

    check_ranges(Options(batch_size=0))  # InputError: --batch-size 0 was given; allowed is from 1 to 65536

Upper ends are far above what is useful and below what overflows. What depends on several options, or on what they name,
is checked where it is used.
"""

from dataclasses import dataclass, fields
from typing import Any

from repquant.errors import InputError, shortened

_MOST_CHARACTERS = 4096
"""Of a text: a path has no more."""


@dataclass(frozen=True)
class Numbers:
    """Numbers from `least` to `most`; of a tuple, each of them.

    Attributes:
        least, most: the ends, which belong to the range.
        above: the lower end does not belong to it.
        below: the upper end does not belong to it.
        or_zero: 0 is allowed besides; it turns something off.
    """

    least: float
    most: float
    above: bool = False
    below: bool = False
    or_zero: bool = False

    def __contains__(self, value: float) -> bool:
        if self.or_zero and value == 0:
            return True
        low = self.least < value if self.above else self.least <= value
        return low and (value < self.most if self.below else value <= self.most)  # NaN is nowhere

    def __str__(self) -> str:
        if self.above:
            text = f"more than {self.least:g} and {'less than' if self.below else 'at most'} {_plain(self.most)}"
        else:
            text = f"from {_plain(self.least)} to {'less than ' if self.below else ''}{_plain(self.most)}"
        return f"0, or {text}" if self.or_zero else text


COUNT = Numbers(0, 10**9)
"""Of images or steps: 0 or more."""
POSITIVE_COUNT = Numbers(1, 10**9)
"""Of images or steps: 1 or more."""
SHARE = Numbers(0, 1)
SEED = Numbers(0, 2**63 - 1)
CLASSES = Numbers(1, 10**6)
IMAGE_SIDE = Numbers(1, 8192)
CROP_RATIO = Numbers(0.01, 1)
MEANS = Numbers(-1000, 1000)
DEVIATIONS = Numbers(1e-4, 1000)
BATCH = Numbers(1, 65536)
BITS = Numbers(2, 8)
EPOCHS = Numbers(1, 10**6)
RATE = Numbers(0, 1000, above=True)


def check_ranges(options: Any) -> None:
    """Accept the values of a dataclass whose fields declare an "allowed" range; texts are ones that a file name can be.

    Raises:
        InputError: a value is out of its range; the message names the option, the value and the range.
    """
    for field in fields(options):
        value = getattr(options, field.name)
        flag = f"--{field.name.replace('_', '-')}"
        allowed = field.metadata.get("allowed")
        if allowed is not None:
            numbers = value if isinstance(value, tuple) else (value,)
            if not all(number in allowed for number in numbers):
                each = "for each of them is " if isinstance(value, tuple) else "is "
                raise InputError(f"{flag} {_shown(value)} was given; allowed {each}{allowed}")
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str):
                _check_text(flag, text)


def _check_text(flag: str, value: str) -> None:
    if len(value) > _MOST_CHARACTERS:
        raise InputError(f"{flag} has {len(value):,} characters; allowed are {_MOST_CHARACTERS}")
    if any(ord(character) < 32 for character in value):
        raise InputError(f"{flag} {shortened(value)} was given; control characters are not allowed")


def _shown(value: Any) -> str:
    try:
        return shortened(str(value))
    except ValueError:  # Python does not write out integers of thousands of digits
        return "with thousands of digits"


def _plain(end: float) -> str:
    return f"{end:,}" if isinstance(end, int) else f"{end:g}"
