"""Read a pickle of plain data as `torch.save` writes it. Nothing in it is run, and it takes no more than it holds.

A pickle is a program for a stack machine. This machine knows the 33 operations that `torch.save` needs (protocol 2) and
calls only what its caller names. Python's own reader, and torch's with `weights_only`, can be made to reserve memory
for what a file merely declares, and to hash or compare what takes for ever. An object takes a byte in a file and a
hundred in memory, so operations are counted too.
"""

import pickle
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

MOST_BYTES = 2**22
"""Of one pickle. That of a network with 1,000 tensors and its optimizer has a tenth of it."""

_MOST_OPERATIONS = 2**20
"""Of one pickle. A network with 1,000 tensors and its optimizer takes a tenth of it."""

_MOST_NUMBERED = 2**13
"""Keys that are numbers: of those, other than of texts, anybody can find many with one hash. Optimizers have some."""

_MOST_DEPTH, _MOST_VALUES = 32, 10**6
_SIZES = {
    pickle.BININT: "<i",
    pickle.BININT1: "<B",
    pickle.BININT2: "<H",
    pickle.BINFLOAT: ">d",
    pickle.BINPUT: "<B",
    pickle.LONG_BINPUT: "<I",
    pickle.BINGET: "<B",
    pickle.LONG_BINGET: "<I",
    pickle.LONG1: "<B",
    pickle.BINUNICODE: "<I",
    pickle.BINSTRING: "<I",
    pickle.SHORT_BINSTRING: "<B",
    pickle.PROTO: "<B",
}
"""How the number is stored that follows an operation."""

_CONSTANTS = {pickle.NONE: None, pickle.NEWTRUE: True, pickle.NEWFALSE: False, pickle.EMPTY_TUPLE: ()}
_TUPLES = {pickle.TUPLE1: 1, pickle.TUPLE2: 2, pickle.TUPLE3: 3}


class DamagedPickleError(ValueError):
    """The bytes are no pickle as `torch.save` writes it, or lie about what they hold."""


class CodeError(DamagedPickleError):
    """The pickle wants something called that is not plain data; `name` says what."""

    def __init__(self, name: str) -> None:
        super().__init__(f"it wants {name}")
        self.name = name


@dataclass(frozen=True)
class Function:
    """What a pickle may call."""

    call: Callable[..., Any]


def unpickle(
    stream: BinaryIO,
    names: Mapping[str, Any],
    persistent: Callable[[Any], Any] = lambda _: None,
    limit: int = MOST_BYTES,
) -> Any:
    """Return the value of the pickle at the stream's position, and leave the position behind it.

    Args:
        stream: is read up to the end of the pickle, and not beyond.
        names: what a pickle may mean by a global name, "module.name": a constant, or a `Function` that it may call.
        persistent: gives what a persistent id stands for.
        limit: bytes that the pickle may have.

    Raises:
        CodeError: the pickle names something else.
        DamagedPickleError: no such pickle, or one that is nested more deeply than plain data are.
    """
    try:
        value = _Machine(stream, names, persistent, limit).run()
    except (DamagedPickleError, OSError):
        raise
    except Exception as error:  # a damaged pickle can ask for anything: what is not there, or is of another type
        raise DamagedPickleError(f"it can't be read ({type(error).__name__})") from error
    _require_flat(value)
    return value


class _Machine:
    def __init__(
        self, stream: BinaryIO, names: Mapping[str, Any], persistent: Callable[[Any], Any], limit: int
    ) -> None:
        self._stream, self._names, self._persistent, self._left = stream, names, persistent, limit
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._numbered = 0

    def run(self) -> Any:
        operations = 0
        while (operation := self._read(1)) != pickle.STOP:
            operations += 1
            if operations > _MOST_OPERATIONS:
                raise DamagedPickleError("it is longer than any of a network")
            number = self._number(_SIZES[operation]) if operation in _SIZES else 0
            self._do(operation, number)
        (value,) = self._stack
        return value

    def _do(self, operation: bytes, number: Any) -> None:
        stack = self._stack
        match operation:
            case _ if operation in _CONSTANTS:
                stack.append(_CONSTANTS[operation])
            case pickle.BINPUT | pickle.LONG_BINPUT:
                self._memo[number] = stack[-1]
            case pickle.BINGET | pickle.LONG_BINGET:
                stack.append(self._memo[number])
            case pickle.BINUNICODE | pickle.BINSTRING | pickle.SHORT_BINSTRING:
                stack.append(self._read(number).decode("utf-8", "surrogatepass"))
            case pickle.BININT | pickle.BININT1 | pickle.BININT2 | pickle.BINFLOAT:
                stack.append(number)
            case pickle.LONG1:
                stack.append(int.from_bytes(self._read(number), "little", signed=True))
            case pickle.EMPTY_LIST:
                stack.append([])
            case pickle.EMPTY_DICT:
                stack.append({})
            case pickle.MARK:
                self._marks.append(len(stack))
            case pickle.TUPLE:
                stack.append(tuple(self._since_mark()))
            case pickle.TUPLE1 | pickle.TUPLE2 | pickle.TUPLE3:
                stack.append(tuple(self._last(_TUPLES[operation])))
            case pickle.APPEND:
                self._extend(self._last(1))
            case pickle.APPENDS:
                self._extend(self._since_mark())
            case pickle.SETITEM:
                self._set(self._last(2))
            case pickle.SETITEMS:
                self._set(self._since_mark())
            case pickle.GLOBAL:
                stack.append(self._global(f"{self._line()}.{self._line()}"))
            case pickle.BINPERSID:
                stack.append(self._persistent(stack.pop()))
            case pickle.REDUCE:
                function, arguments = self._last(2)
                if not isinstance(function, Function):
                    raise DamagedPickleError("it calls what is no function")
                stack.append(function.call(*arguments))
            case pickle.BUILD:  # attributes of a dictionary: state_dict() notes versions of modules there
                stack.pop()
                if not isinstance(stack[-1], dict):
                    raise DamagedPickleError("it changes the state of an object")
            case pickle.PROTO:
                pass
            case _:
                raise DamagedPickleError(f"operation {operation!r} is none of torch.save's")

    def _read(self, count: int) -> bytes:
        if count > self._left:
            raise DamagedPickleError("it is longer than any of a network")
        self._left -= count
        content = self._stream.read(count)
        if len(content) < count:
            raise DamagedPickleError("it ends early")
        return content

    def _line(self) -> str:
        line = self._stream.readline(min(self._left, 1000))
        self._left -= len(line)
        if not line.endswith(b"\n"):
            raise DamagedPickleError("it ends early")
        return line[:-1].decode()

    def _number(self, form: str) -> int | float:
        number: int | float = struct.unpack(form, self._read(struct.calcsize(form)))[0]
        return number

    def _since_mark(self) -> list[Any]:
        return self._last(len(self._stack) - self._marks.pop())

    def _last(self, count: int) -> list[Any]:
        start = len(self._stack) - count
        if start < 0 or count < 0:
            raise DamagedPickleError("it takes more than there is")
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _extend(self, items: list[Any]) -> None:
        if not isinstance(self._stack[-1], list):
            raise DamagedPickleError("it appends to what is no list")
        self._stack[-1].extend(items)

    def _set(self, pairs: list[Any]) -> None:
        keys = pairs[::2]
        # Tuples as keys could be nested so that their hash takes for ever.
        if not isinstance(self._stack[-1], dict) or not all(isinstance(key, str | int | float) for key in keys):
            raise DamagedPickleError("it has keys that are neither names nor numbers")
        self._numbered += sum(not isinstance(key, str) for key in keys)
        if self._numbered > _MOST_NUMBERED:
            raise DamagedPickleError(f"more than {_MOST_NUMBERED:,} of its keys are numbers")
        self._stack[-1].update(zip(keys, pairs[1::2], strict=True))

    def _global(self, name: str) -> Any:
        if name not in self._names:
            raise CodeError(name)
        return self._names[name]


def _require_flat(value: Any) -> None:
    """Refuse what contains itself, or so much by repetition that nobody could walk through it."""
    pending, seen = [(value, 0)], 0
    while pending:
        each, depth = pending.pop()
        seen += 1
        if depth > _MOST_DEPTH or seen > _MOST_VALUES:
            raise DamagedPickleError("it is nested more deeply, or holds more, than plain data of a network do")
        if isinstance(each, dict):
            pending += [(inner, depth + 1) for inner in each.values()]
        elif isinstance(each, list | tuple):
            pending += [(inner, depth + 1) for inner in each]
