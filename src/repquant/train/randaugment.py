"""What "n2m9" means: the usual way to write the settings of RandAugment. Nothing heavy is imported here."""

import re

from repquant.errors import InputError

_SPEC = re.compile(r"n(\d{1,2})m(\d{1,2})", re.ASCII)
_MOST_OPERATIONS, _MAGNITUDES = 20, 30


def parse_randaugment(spec: str) -> tuple[int, int]:
    """Return the number of operations and their magnitude.

    Raises:
        InputError: the text is no such pair, or one that is out of its range.
    """
    match = _SPEC.fullmatch(spec)
    count, magnitude = (int(number) for number in match.groups()) if match else (0, 0)
    if not 1 <= count <= _MOST_OPERATIONS or not 0 < magnitude < _MAGNITUDES:
        raise InputError(
            f"RandAugment {spec!r} is not understood; give n<operations>m<magnitude>, 1 to {_MOST_OPERATIONS} "
            f"operations and a magnitude of 1 to {_MAGNITUDES - 1}, for example n2m9"
        )
    return count, magnitude
