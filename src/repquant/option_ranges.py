"""What an option is: a dataclass field whose type, range, default and help the command line and the checks both read.

    @dataclass(frozen=True, kw_only=True)
    class Options:
        batch_size: int = option("images a batch", 32, Numbers(1, 65536))
        device: Literal["cpu", "cuda"] = option("where to train", "cpu")

    check_ranges(Options(batch_size=0))  # InputError: `batch_size=0` was given; allowed is from 1 to 65,536

Upper ends are far above what is useful and below what overflows. What depends on several options, or on what they name,
is checked where it is used.
"""

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from repquant.errors import InputError, given

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


@dataclass(frozen=True)
class Names:
    """Names in a text, with commas, in order and without repetition; `all` stands for what there is."""

    names: tuple[str, ...]

    def split(self, text: str, everything: Sequence[str] = ()) -> tuple[str, ...]:
        """Return the names in a text; `all` stands for `everything`, or for all that are allowed.

        Raises:
            InputError: a name that is not allowed, or none at all.
        """
        names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
        if names == ("all",):
            return tuple(everything) or self.names
        unknown = [name for name in names if name not in self.names]
        if unknown or not names:
            raise InputError(f"{', '.join(map(repr, unknown)) or 'no name'} was given; allowed are {self}")
        return names

    def __str__(self) -> str:
        return f"{', '.join(self.names)}, several with commas, or all"


def option(help: str, default: Any = MISSING, allowed: Numbers | Names | None = None, argument: str = "") -> Any:
    """Return a dataclass field of an option; without a default it is required.

    Args:
        help: what it is, for a person; the range, the choices of its type and the default are added where it is shown.
        default: its value where none is given.
        allowed: what it may be, besides what its type says.
        argument: what the library calls it, where that is another name.
    """
    return field(default=default, metadata={"help": help, "allowed": allowed, "argument": argument})


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
    """Accept the values of a dataclass: in the range of its field and the choices of its type; texts as file names are.

    Raises:
        InputError: a value is none of them; the message names the option, the value and what is allowed.
    """
    hints = get_type_hints(type(options))
    for each in fields(options):
        value = getattr(options, each.name)
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str):
                _check_text(each.name, text)
        if get_origin(hints[each.name]) is Literal and value not in get_args(hints[each.name]):
            choices = ", ".join(map(str, get_args(hints[each.name])))
            raise InputError(f"{given(each.name, value)} was given; allowed is one of {choices}")
        allowed = each.metadata.get("allowed")
        if isinstance(allowed, Names) and value != each.default:
            _check_names(each.name, value, allowed)
        elif isinstance(allowed, Numbers):
            numbers = value if isinstance(value, tuple) else (value,)
            if not all(number in allowed for number in numbers):
                which = "for each of them is " if isinstance(value, tuple) else "is "
                raise InputError(f"{given(each.name, value)} was given; allowed {which}{allowed}")


def _check_names(name: str, value: str, allowed: Names) -> None:
    try:
        allowed.split(value)
    except InputError as error:
        raise InputError(f"`{name}`: {error}") from None


def _check_text(name: str, value: str) -> None:
    if len(value) > _MOST_CHARACTERS:
        raise InputError(f"`{name}` has {len(value):,} characters; allowed are {_MOST_CHARACTERS:,}")
    if any(ord(character) < 32 for character in value):
        raise InputError(f"{given(name, value)} was given; control characters are not allowed")


def _plain(end: float) -> str:
    return f"{end:,}" if isinstance(end, int) else f"{end:g}"
