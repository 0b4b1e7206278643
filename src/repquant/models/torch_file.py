"""Read a file of `torch.save`: plain data and tensors, each with at most the bytes that the file holds for it.

The file is checked before it is believed: checksums, no compressed member, no tensor larger than its storage.
`torch.load` compares no checksums, and lets a file of a few bytes declare tensors of gigabytes.
"""

import os
import struct
import zipfile
from collections import OrderedDict
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from repquant.models.torch_pickle import CodeError, DamagedPickleError, Function, unpickle
from repquant.regular_files import open_regular

_ZIP = b"PK\x03\x04"
_LEGACY_MAGIC, _LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_MOST_DIMENSIONS = 8
_SHARING = 2  # how many times over the bytes of a file may be in tensors: two names for one weight are usual
_LEAST_BYTES = 64  # that a tensor counts for: its name and shape take as much in a file
_MOST_PAIRS = 2**16  # of dictionaries that are made from lists of pairs, as Python 2 did
_STORAGES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexFloat": torch.complex64,
    "ComplexDouble": torch.complex128,
}
PLAIN_TYPES = frozenset(
    {
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool),
        *(torch.int64, torch.int32, torch.int16, torch.int8),
        *(torch.uint64, torch.uint32, torch.uint16, torch.uint8),
        *(torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz, torch.float8_e8m0fnu),
    }
)
"""Types of numbers that can be worked with. Torch has others, for which it can do almost nothing."""

_DTYPES = {
    str(dtype): dtype if dtype in PLAIN_TYPES else str(dtype)
    for dtype in vars(torch).values()
    if isinstance(dtype, torch.dtype)
}
_NO_PLAIN_TENSORS = (
    "_utils._rebuild_sparse_tensor",
    "_utils._rebuild_qtensor",
    "_utils._rebuild_meta_tensor_no_storage",
    "_utils._rebuild_nested_tensor",
    "serialization._get_layout",
)


class NoPlainTensor:
    """Stands for a tensor that is sparse, quantized or without content."""

    def __init__(self, *_: object) -> None:
        pass


def load_torch_file(path: Path) -> Any:
    """Return what was given to `torch.save`, on the CPU; dictionaries lose their attributes, parameters are tensors.

    Both formats are read, the zip archive and the one before torch 1.6, which has no checksums.

    Raises:
        OSError: the file can't be read or is no regular one.
        CodeError: the file needs code to load; none was run.
        DamagedPickleError, zipfile.BadZipFile: the file is damaged, no file of `torch.save`, or declares more than it
            holds.
    """
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        is_archive = stream.read(len(_ZIP)) == _ZIP
        stream.seek(0)
        if not is_archive:
            return _Legacy(stream, size).load()
        with zipfile.ZipFile(stream) as archive:
            return _Archive(archive, size).load()


def _size(values: Any) -> tuple[int, ...]:
    if not isinstance(values, tuple):  # a copy of a long text or list, and again of the same
        raise DamagedPickleError("the shape of a tensor is none")
    return values


class _Tensors:
    """Gives pickles their tensors, and counts what they declare."""

    def __init__(self, size: int) -> None:
        self._left, self._pairs = _SHARING * size, _MOST_PAIRS
        self._views: dict[tuple[str, torch.dtype], Tensor] = {}
        self.names: dict[str, Any] = {
            "collections.OrderedDict": Function(self._ordered),
            "torch.Size": Function(_size),
            "torch.device": Function(lambda *_: None),  # everything is read onto the CPU
            "torch._utils._rebuild_tensor": Function(self._rebuild),
            "torch._utils._rebuild_tensor_v2": Function(self._rebuild),
            "torch._utils._rebuild_tensor_v3": Function(self._rebuild_untyped),
            "torch._utils._rebuild_parameter": Function(lambda data, *_: data),
            "torch.storage.UntypedStorage": torch.uint8,
            **{f"torch.{name}": Function(NoPlainTensor) for name in _NO_PLAIN_TENSORS},
            **{f"torch.{name}Storage": dtype for name, dtype in _STORAGES.items()},
            **_DTYPES,
        }

    def _ordered(self, pairs: Any = ()) -> OrderedDict[str, Any]:
        self._pairs -= len(pairs)
        if self._pairs < 0 or not all(isinstance(key, str) for key, _ in pairs):
            raise DamagedPickleError("a dictionary has keys that are no names, or too many")
        return OrderedDict(pairs)

    def _view(self, key: str, storage: Tensor, dtype: torch.dtype) -> Tensor:
        """Return a storage, uint8, as another type; the same tensor each time: it may be asked for again and again."""
        if (key, dtype) not in self._views:
            self._views[key, dtype] = storage.view(dtype)
        return self._views[key, dtype]

    def _rebuild_untyped(self, storage: Tensor, offset: int, size: Any, stride: Any, *rest: Any) -> Tensor:
        return self._rebuild(storage.view(rest[2]), offset, size, stride)

    def _rebuild(self, storage: Tensor, offset: int, size: Any, stride: Any, *_: object) -> Tensor:
        numbers = (offset, *size, *stride)
        if len(size) != len(stride) or len(size) > _MOST_DIMENSIONS:
            raise DamagedPickleError(f"a tensor has {len(size)} dimensions; {_MOST_DIMENSIONS} are the most")
        if not all(type(number) is int and number >= 0 for number in numbers) or not isinstance(storage, Tensor):
            raise DamagedPickleError("the shape of a tensor is none")
        count = prod(size)
        last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True)) if count else -1
        if count > len(storage) or last >= len(storage):
            raise DamagedPickleError("a tensor declares more values than its storage holds")
        self._left -= max(count * storage.element_size(), _LEAST_BYTES)
        if self._left < 0:
            raise DamagedPickleError("its tensors declare more bytes than the file has")
        return storage.as_strided(size, stride, offset)


class _Archive(_Tensors):
    """A zip archive: `name/data.pkl`, and a member `name/data/KEY` for each storage."""

    def __init__(self, archive: zipfile.ZipFile, size: int) -> None:
        super().__init__(size)
        self._archive = archive
        members = archive.infolist()
        if any(each.compress_type != zipfile.ZIP_STORED for each in members):
            raise DamagedPickleError("a member is compressed, which torch.save does not do")
        if sum(each.file_size for each in members) > size or len({each.filename for each in members}) < len(members):
            raise DamagedPickleError("its members declare more bytes than the file has")
        self._sizes = {each.filename: each.file_size for each in members}
        self._storages: dict[str, Tensor] = {}

    def load(self) -> Any:
        roots = [name.removesuffix("/data.pkl") for name in self._sizes if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise DamagedPickleError("it is no archive of torch.save")
        (self._root,) = roots
        if f"{self._root}/constants.pkl" in self._sizes:
            raise CodeError("TorchScript")
        if (damaged := self._archive.testzip()) is not None:
            raise DamagedPickleError(f"the checksum of {damaged} is wrong")
        order = f"{self._root}/byteorder"
        if order in self._sizes and self._archive.read(order) != b"little":
            raise DamagedPickleError("it was written on a machine with another order of bytes")
        with self._archive.open(f"{self._root}/data.pkl") as stream:
            return unpickle(stream, self.names, self._storage)  # type: ignore[arg-type]  # reads as a BinaryIO does

    def _storage(self, identity: Any) -> Tensor:
        kind, dtype, key, _, count = identity
        name = f"{self._root}/data/{key}"
        if kind != "storage" or not isinstance(dtype, torch.dtype) or name not in self._sizes:
            raise DamagedPickleError("a tensor has no storage")
        if count * dtype.itemsize != self._sizes[name]:
            raise DamagedPickleError(f"{name} has another size than it is said to have")
        if name not in self._storages:
            self._storages[name] = torch.empty(self._sizes[name], dtype=torch.uint8)
            with self._archive.open(name) as stream:
                _fill(stream, self._storages[name])  # type: ignore[arg-type]
        return self._view(name, self._storages[name], dtype)


class _Legacy(_Tensors):
    """Five pickles after each other (magic, protocol, machine, content, keys), then the storages."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        super().__init__(size)
        self._stream, self._unclaimed = stream, size
        self._storages: dict[str, tuple[torch.dtype, Tensor]] = {}

    def load(self) -> Any:
        if unpickle(self._stream, {}) != _LEGACY_MAGIC or unpickle(self._stream, {}) != _LEGACY_PROTOCOL:
            raise DamagedPickleError("it does not begin as a file of torch.save")
        machine = unpickle(self._stream, {})
        if not (isinstance(machine, dict) and machine.get("little_endian") is True):
            raise DamagedPickleError("it was written on a machine with another order of bytes")
        content = unpickle(self._stream, self.names, self._storage)
        keys = unpickle(self._stream, {})
        if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(self._storages):
            raise DamagedPickleError("it does not hold the storages of its tensors")
        for key in keys:
            dtype, storage = self._storages[key]
            (count,) = struct.unpack("<q", self._stream.read(8))
            if count * dtype.itemsize != len(storage):
                raise DamagedPickleError(f"storage {key[:40]} has another size than it is said to have")
            _fill(self._stream, storage)
        return content

    def _storage(self, identity: Any) -> Tensor:
        kind, dtype, key, _, count, view = identity
        if kind != "storage":
            raise CodeError("the source of a module")
        if not (isinstance(dtype, torch.dtype) and isinstance(key, str) and type(count) is int and view is None):
            raise DamagedPickleError("a tensor has no storage")
        if key not in self._storages:
            self._unclaimed -= count * dtype.itemsize
            if count < 0 or self._unclaimed < 0:
                raise DamagedPickleError("its storages declare more bytes than the file has")
            self._storages[key] = dtype, torch.empty(count * dtype.itemsize, dtype=torch.uint8)
        of_type, storage = self._storages[key]
        if (of_type, count * dtype.itemsize) != (dtype, len(storage)):
            raise DamagedPickleError("a storage has two sizes")
        return self._view(key, storage, dtype)


def _fill(stream: BinaryIO, storage: Tensor) -> None:
    """Read a storage, uint8, as the next bytes of a stream."""
    if len(storage) and stream.readinto(storage.numpy().data) != len(storage):  # type: ignore[attr-defined]
        raise DamagedPickleError("it ends early")
