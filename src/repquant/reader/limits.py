"""What operators whose output may be far larger than the file may make; known before it is made."""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from torch import Tensor

from repquant.errors import InputError
from repquant.reader.values import Value, integers

MOST_MADE = 1 << 28
"""Elements that one operator may make of one image or of constants: 1 GiB of floats."""

MOST_GROWN = 1 << 24
"""Elements that it may make where a constant takes its place."""

MOST_GIVEN = 1 << 26
"""Elements of an input for the sizes that a file declares."""


class TooManyElementsError(InputError):
    """An output or input is larger than the limit."""


def require_small(kind: str, inputs: Sequence[Value], attributes: Mapping[str, Any]) -> None:
    """Accept an operator whose output for one image is not too large.

    Raises:
        TooManyElementsError: it is.
    """
    count = made(kind, inputs, attributes)
    if count > MOST_MADE:
        raise TooManyElementsError(f"it makes {count:.1e} elements of one image; allowed are at most {MOST_MADE}")


def made(kind: str, inputs: Sequence[Value], attributes: Mapping[str, Any]) -> int:
    """Return how many elements an operator makes of its numbers and of the first image; 0 where that is not known."""
    count = _MADE.get(kind)
    numbers = [value for value in inputs[1:] if value is not None]
    if count is None or any(isinstance(value, Tensor) for value in numbers):
        return 0
    first = inputs[0]
    if first is None or (kind in _OF_NUMBERS and isinstance(first, Tensor)):
        return 0
    return int(count(first if kind in _OF_NUMBERS else _sizes(first), *inputs[1:], **attributes))


def _sizes(value: Tensor | np.ndarray[Any, Any]) -> list[int]:
    """Return the sizes of one image, or of an array."""
    sizes = list(value.shape)
    if isinstance(value, Tensor) and sizes:
        sizes[0] = 1
    return _known(sizes)


def _known(sizes: Sequence[Any]) -> list[int]:
    """Return sizes with 1 for each that is a symbol; Python's integers do not overflow."""
    return [int(size) if isinstance(size, int | float | np.number) else 1 for size in sizes]


def _constant(shape: Any, **_: Any) -> int:
    return math.prod(_known(integers(shape)))


def _range(start: Any, limit: Any, delta: Any) -> float:
    if any(value.dtype == object for value in (start, limit, delta)) or not delta.item():
        return 0
    return max(float((limit.item() - start.item()) // delta.item()), 0.0)


def _expand(own: list[int], shape: Any) -> int:
    asked = _known(integers(shape))
    rank = max(len(own), len(asked))
    pairs = zip([1] * (rank - len(own)) + own, [1] * (rank - len(asked)) + asked, strict=True)
    return math.prod(max(pair) for pair in pairs)


def _tile(own: list[int], repeats: Any) -> int:
    return math.prod(own) * math.prod(_known(integers(repeats)))


def _pad(own: list[int], pads: Any, value: Any = None, axes: Any = None, **_: Any) -> int:
    widths = _known(integers(pads))
    count, sizes = len(widths) // 2, list(own)
    for place, axis in enumerate(range(len(own)) if axes is None else integers(axes)):
        sizes[axis] += widths[place] + widths[place + count]
    return math.prod(sizes)


def _resize(own: list[int], roi: Any = None, scales: Any = None, sizes: Any = None, **attributes: Any) -> float:
    by_size = sizes is not None and sizes.size
    numbers = sizes if by_size else scales
    result: list[float] = [float(size) for size in own]
    for axis, number in zip(attributes.get("axes") or range(len(own)), numbers.tolist(), strict=True):
        known = number if isinstance(number, int | float) else 1
        result[axis] = known if by_size else own[axis] * known
    return math.prod(result)


_OF_NUMBERS = frozenset({"ConstantOfShape", "Range"})
_MADE: Mapping[str, Callable[..., float]] = MappingProxyType(
    {
        "ConstantOfShape": _constant,
        "Expand": _expand,
        "Pad": _pad,
        "Range": _range,
        "Resize": _resize,
        "Tile": _tile,
    }
)
