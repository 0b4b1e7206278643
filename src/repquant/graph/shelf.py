"""Tensors that wait for their turn: in memory up to a budget, the others in a temporary file."""

import tempfile
from dataclasses import dataclass, replace
from io import BufferedRandom
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from repquant.errors import InputError

_MEMORY = 128 << 20  # bytes; what does not fit is written, and read again when it is needed


@dataclass(frozen=True, kw_only=True, eq=False)
class Shelved:
    """Where a tensor is.

    Attributes:
        shape, dtype, device: its own.
        bytes: its size.
        tensor: itself, if it is in memory.
        place: its first byte, if it is in the file.
    """

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    bytes: int
    tensor: Tensor | None = None
    place: int = 0


class Shelf:
    """Keeps tensors, so that memory holds `memory` bytes of them at most and the disk the rest.

    The file has no name and is gone with the process; the folder is that of `tempfile`, so `TMPDIR` moves it. To be
    used in a `with` statement.

    Args:
        memory: budget in bytes.

    Attributes:
        in_memory: bytes of the tensors that are kept in memory.
    """

    def __init__(self, memory: int = _MEMORY) -> None:
        self.in_memory = 0
        self._memory = memory
        self._file: BufferedRandom | None = None
        self._end = 0
        self._free: dict[int, list[int]] = {}  # bytes -> places: maps of one layer are of one size

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def put(self, values: Any) -> Any:
        """Return values, a tree, with each tensor on the shelf and what is no tensor as it is.

        A tensor in memory is kept itself, and must not be changed.
        """
        return pytree.tree_map_only(Tensor, self._put, values)

    def get(self, values: Any) -> Any:
        """Return what was put there; it stays on the shelf."""
        return _map(self._get, values)

    def drop(self, values: Any) -> None:
        """Give up the room of what was put there."""
        _map(self._drop, values)

    def _put(self, x: Tensor) -> Shelved:
        x = x.detach()
        kept = Shelved(shape=x.shape, dtype=x.dtype, device=x.device, bytes=x.numel() * x.element_size())
        if self.in_memory + kept.bytes <= self._memory:
            self.in_memory += kept.bytes
            return replace(kept, tensor=x)
        return replace(kept, place=self._write(x))

    def _get(self, kept: Shelved) -> Tensor:
        if kept.tensor is not None:
            return kept.tensor
        assert self._file is not None
        x = torch.empty(kept.shape, dtype=kept.dtype)
        self._file.seek(kept.place)
        read = self._file.readinto(_bytes_of(x))
        assert read == kept.bytes
        return x.to(kept.device)

    def _drop(self, kept: Shelved) -> None:
        if kept.tensor is not None:
            self.in_memory -= kept.bytes
        else:
            self._free.setdefault(kept.bytes, []).append(kept.place)

    def _write(self, x: Tensor) -> int:
        content = _bytes_of(x.cpu().contiguous())
        free = self._free.get(len(content))
        place = free.pop() if free else self._end
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115  # __exit__ closes it
            self._file.seek(place)
            self._file.write(content)
            self._file.flush()
        except OSError as error:
            raise InputError(
                f"values that wait for their layer do not fit the folder for temporary files ({error}); set TMPDIR to "
                "a folder with more room, or give fewer images"
            ) from error
        self._end = max(self._end, place + len(content))
        return place


def _map(function: Any, values: Any) -> Any:
    return pytree.tree_map_only(Shelved, function, values)


def _bytes_of(x: Tensor) -> memoryview:
    return x.reshape(-1).view(torch.uint8).numpy().data
