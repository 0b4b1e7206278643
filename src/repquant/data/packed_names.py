"""Many file names in two arrays: less memory than as strings, and workers receive them without a copy of each."""

import os
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Self, overload

import numpy as np
from numpy.typing import NDArray


class PackedNames(Sequence[str]):
    """A sequence of strings that is stored as one run of bytes.

    Args:
        content: uint8; the names one after the other, encoded as the file system does.
        starts: int64, one more than there are names; name i is content[starts[i]:starts[i + 1]].

    Raises:
        ValueError: the starts do not fit the content.
    """

    def __init__(self, content: NDArray[np.uint8], starts: NDArray[np.int64]) -> None:
        if len(starts) == 0 or starts[0] != 0 or starts[-1] != len(content) or (np.diff(starts) < 0).any():
            raise ValueError("the starts of the names do not fit their content")
        self.content = content
        self.starts = starts

    @classmethod
    def pack(cls, names: Iterable[str]) -> Self:
        """Store these names."""
        encoded = [os.fsencode(name) for name in names]
        starts = np.fromiter(accumulate(map(len, encoded), initial=0), np.int64, len(encoded) + 1)
        return cls(np.frombuffer(b"".join(encoded), np.uint8), starts)

    @classmethod
    def concatenate(cls, parts: Sequence["PackedNames"]) -> Self:
        """All names of the parts, in order."""
        shifts = accumulate((len(part.content) for part in parts), initial=0)
        starts = [part.starts[:-1] + shift for part, shift in zip(parts, shifts, strict=False)]
        content = np.concatenate([np.empty(0, np.uint8), *(part.content for part in parts)])
        return cls(content, np.concatenate([*starts, np.array([len(content)])]).astype(np.int64))

    def part(self, start: int, stop: int) -> "PackedNames":
        """The names from `start` up to `stop`; shares memory with these."""
        starts = self.starts[start : stop + 1]
        return PackedNames(self.content[starts[0] : starts[-1]], starts - starts[0])

    def __len__(self) -> int:
        return len(self.starts) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        position = range(len(self))[index]
        return os.fsdecode(self.content[self.starts[position] : self.starts[position + 1]].tobytes())
