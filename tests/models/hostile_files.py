"""Checkpoints that lie: small files that declare much, and the pickles to make others."""

import pickle
import struct
import zipfile
from pathlib import Path


def text(value: str) -> bytes:
    encoded = value.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(encoded)) + encoded


def number(value: int) -> bytes:
    encoded = value.to_bytes(10, "little", signed=True)
    return pickle.LONG1 + bytes([len(encoded)]) + encoded


def numbers(*values: int) -> bytes:
    return pickle.MARK + b"".join(map(number, values)) + pickle.TUPLE


def name(module: str, of: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{of}\n".encode()


REBUILD = name("torch._utils", "_rebuild_tensor_v2")


def storage(count: int, key: str = "0") -> bytes:
    identity = text("storage") + name("torch", "FloatStorage") + text(key) + text("cpu") + number(count)
    return pickle.MARK + identity + pickle.TUPLE + pickle.BINPERSID


def tensor(size: tuple[int, ...], stride: tuple[int, ...], count: int, offset: int = 0) -> bytes:
    """A tensor on a storage of so many float32 values."""
    return REBUILD + rebuilt_from(size, stride, count, offset) + pickle.REDUCE


def rebuilt_from(size: tuple[int, ...], stride: tuple[int, ...], count: int, offset: int = 0) -> bytes:
    arguments = storage(count) + number(offset) + numbers(*size) + numbers(*stride) + pickle.NEWFALSE
    hooks = name("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    return pickle.MARK + arguments + hooks + pickle.TUPLE


def of_type(dtype: str) -> bytes:
    """A tensor of 8 bytes, of a type that torch knows."""
    identity = text("storage") + name("torch.storage", "UntypedStorage") + text("0") + text("cpu") + number(8)
    shape = number(0) + numbers(1) + numbers(1) + pickle.NEWFALSE
    hooks = name("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    arguments = pickle.MARK + identity + pickle.TUPLE + pickle.BINPERSID + shape + hooks + name("torch", dtype)
    return name("torch._utils", "_rebuild_tensor_v3") + pickle.MARK + arguments + pickle.TUPLE + pickle.REDUCE


def state(value: bytes, key: bytes = text("linear.weight")) -> bytes:
    """A pickle of a dictionary with one entry."""
    return pickle.PROTO + b"\x02" + pickle.EMPTY_DICT + key + value + pickle.SETITEM + pickle.STOP


def archive(path: Path, content: bytes, floats: int = 1, compression: int = zipfile.ZIP_STORED) -> Path:
    """Write what `torch.save` would, with any pickle and one storage of ones."""
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", content)
        file.writestr("archive/byteorder", "little")
        file.writestr("archive/data/0", struct.pack("<f", 1.0) * floats)
        file.writestr("archive/version", "3\n")
    return path


def nested_tuple(depth: int) -> bytes:
    return pickle.EMPTY_TUPLE + pickle.TUPLE1 * depth


def doubled(levels: int) -> bytes:
    """A list that holds twice what holds twice ..."""
    content = pickle.EMPTY_LIST + pickle.BINPUT + b"\0"
    for _ in range(levels):
        content = pickle.EMPTY_LIST + pickle.MARK + content + pickle.BINGET + b"\0" + pickle.APPENDS + b"q\0"
    return content


def again(function: bytes, arguments: bytes, times: int) -> bytes:
    """A list of what a function gives for the same arguments, a tuple, each in five bytes."""
    once = function + pickle.BINPUT + b"\1" + arguments + pickle.BINPUT + b"\2"
    each = pickle.BINGET + b"\1" + pickle.BINGET + b"\2" + pickle.REDUCE
    return pickle.EMPTY_LIST + pickle.MARK + once + each * times + pickle.APPENDS


def pairs(count: int) -> bytes:
    return pickle.EMPTY_LIST + pickle.MARK + (text("k") + pickle.NONE + pickle.TUPLE2) * count + pickle.APPENDS


def of_equal_hash(count: int) -> bytes:
    """A dictionary whose keys are multiples of the modulus of Python's hash: all of them hash to 0."""
    keys = b"".join(number(each * (2**61 - 1)) + pickle.NONE for each in range(count))
    return pickle.EMPTY_DICT + pickle.MARK + keys + pickle.SETITEMS


HOSTILE = {
    "stride 0": (state(tensor((2**33,), (0,), 1)), "declares more values than its storage holds"),
    "beyond its storage": (state(tensor((2**31,), (1,), 1)), "declares more values than its storage holds"),
    "behind its storage": (state(tensor((1,), (1,), 1, offset=1)), "declares more values than its storage holds"),
    "another storage": (state(tensor((2**31,), (1,), 2**31)), "has another size than it is said to have"),
    "negative stride": (state(tensor((1,), (-1,), 1)), "the shape of a tensor is none"),
    "negative size": (state(tensor((-1,), (1,), 1)), "the shape of a tensor is none"),
    "many dimensions": (state(tensor((1,) * 10**4, (1,) * 10**4, 1)), "10000 dimensions; 8 are the most"),
    "many aliases": (
        pickle.PROTO + b"\x02" + pickle.EMPTY_DICT + pickle.MARK
        + b"".join(text(str(index)) + tensor((1024,), (1,), 1024) for index in range(200)) + pickle.SETITEMS + b".",
        "declare more bytes than the file has",
    ),
    "build": (state(tensor((1,), (1,), 1) + numbers(2**31, 1) + pickle.BUILD), "it changes the state of an object"),
    "nested tensor": (state(name("torch._utils", "_rebuild_nested_tensor") + b")R"), "is no plain tensor"),
    "nested key": (state(pickle.NONE, nested_tuple(10**5)), "keys that are neither names nor numbers"),
    "nested value": (state(nested_tuple(10**5)), "nested more deeply"),
    "doubled value": (state(doubled(100)), "nested more deeply"),
    "contains itself": (state(pickle.EMPTY_LIST + b"q\0h\0" + pickle.APPEND), "nested more deeply"),
    "memo": (state(pickle.NONE + pickle.LONG_BINPUT + b"\xff\xff\xff\xff"), "entry 'linear.weight' is no plain tensor"),
    "long text": (state(pickle.BINUNICODE + b"\xff\xff\xff\xff"), "longer than any of a network"),
    "another operation": (state(pickle.BYTEARRAY8 + b"\xff" * 7 + b"\0"), "is none of torch.save's"),
    "long pickle": (state(pickle.NONE + text("x" * 2**22)), "longer than any of a network"),
    "copies of a text": (
        state(again(name("torch", "Size"), text("x" * 2**20) + pickle.TUPLE1, 1000)), "the shape of a tensor is none",
    ),
    "copies of pairs": (
        state(again(name("collections", "OrderedDict"), pairs(10**4) + pickle.TUPLE1, 1000)),
        "keys that are no names, or too many",
    ),
    "copies of nothing": (
        state(again(REBUILD, rebuilt_from((0,), (1,), 1), 10**5)), "declare more bytes than the file has",
    ),
    "keys of equal hash": (state(of_equal_hash(10**4)), "more than 8,192 of its keys are numbers"),
    "huge number": (state(pickle.LONG1 + b"\xff" + b"\x7f" * 255), "entry 'linear.weight' is no plain tensor"),
    "huge key": (state(pickle.NONE, text("\x1b[31m" + "x" * 10**6)), "1,000,010 characters"),
}  # fmt: skip
"""Name -> pickle, and words of the refusal."""
