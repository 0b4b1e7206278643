"""The layers of a .param file and the numbers of the .bin file beside it."""

import struct
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repquant.targets.ncnn_file import MAGIC, seal

_INT8_TAG, _FLOAT_TAG = 0x000D4B38, 0
_ALIGNMENT = 4
_ARRAY = -23300

Settings = Mapping[int, int | float | Sequence[float]]


@dataclass
class _Layer:
    kind: str
    name: str
    reads: list[str]
    writes: list[str]
    settings: str = ""

    def line(self) -> str:
        words = [self.kind, self.name, len(self.reads), len(self.writes), *self.reads, *self.writes]
        return " ".join([*map(str, words), *self.settings.split()])


@dataclass
class FilePair:
    """Layers in the order in which they are added, and their numbers.

    Args:
        reserved: names that blobs inside may not have: those of inputs and outputs.
    """

    reserved: Iterable[str]
    _layers: list[_Layer] = field(default_factory=list)
    _numbers: bytearray = field(default_factory=bytearray)
    _names: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._names.update(self.reserved)

    def add(
        self,
        kind: str,
        name: str,
        reads: Sequence[str],
        settings: Settings | None = None,
        numbers: Sequence[bytes] = (),
        results: int = 1,
    ) -> list[str]:
        """Add a layer, and return the blobs that it writes.

        Args:
            kind: its type in ncnn.
            name: for people: a number is added where it is taken.
            reads: blobs.
            settings: number of the setting -> its value.
            numbers: weights and scales, in ncnn's order.
            results: how many blobs it writes.
        """
        fresh = self._fresh(name)
        writes = [fresh] if results == 1 else [self._fresh(f"{name}_{index}") for index in range(results)]
        self._layers.append(_Layer(kind, fresh, [*reads], writes, _text(settings or {})))
        for part in numbers:
            self._numbers += part
        return writes

    def add_input(self, name: str, sizes: Sequence[int]) -> None:
        """Add an input of sizes (C, H, W), (H, W) or (W)."""
        settings = dict(enumerate(reversed(sizes)))
        self._layers.append(_Layer("Input", name, [], [name], _text(settings)))

    def content(self, outputs: Sequence[tuple[str, str]]) -> tuple[str, bytes]:
        """Return the text of the .param file and the bytes of the .bin file.

        Args:
            outputs: name and blob of each output.
        """
        numbers = bytes(self._numbers)
        end = _Layer("Noop", seal(numbers), [blob for _, blob in outputs], [name for name, _ in outputs])
        layers = _split([*self._layers, end])
        blobs = sum(len(layer.writes) for layer in layers)
        lines = [MAGIC, f"{len(layers)} {blobs}", *(layer.line() for layer in layers)]
        return "\n".join(lines) + "\n", numbers

    def _fresh(self, name: str) -> str:
        while self._names[name]:
            self._names[name] += 1
            name = f"{name}_{self._names[name]}"
        self._names[name] += 1
        return name


def floats(array: NDArray[Any]) -> bytes:
    """Return biases and scales as the file holds them."""
    return np.ascontiguousarray(array, np.float32).tobytes()


def float_weights(array: NDArray[Any]) -> bytes:
    """Return float32 weights as the file holds them."""
    return struct.pack("<I", _FLOAT_TAG) + floats(array)


def int8_weights(array: NDArray[np.int8]) -> bytes:
    """Return int8 weights as the file holds them."""
    content = np.ascontiguousarray(array, np.int8).tobytes()
    return struct.pack("<I", _INT8_TAG) + content + bytes(-len(content) % _ALIGNMENT)


def _text(settings: Settings) -> str:
    return " ".join(
        f"{_ARRAY - number}={len(value)},{','.join(map(_number, value))}"
        if isinstance(value, Sequence)
        else f"{number}={_number(value)}"
        for number, value in settings.items()
    )


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.9e}"


def _split(layers: Sequence[_Layer]) -> list[_Layer]:
    """Return layers in which every blob is read once: ncnn wants a Split layer where there are several readers."""
    readers = Counter(blob for layer in layers for blob in layer.reads)
    copies: dict[str, list[str]] = {}
    result = []
    for layer in layers:
        layer.reads = [copies[blob].pop(0) if blob in copies else blob for blob in layer.reads]
        result.append(layer)
        for blob in layer.writes:
            if readers[blob] > 1:
                copies[blob] = [f"{blob}_split_{index}" for index in range(readers[blob])]
                result.append(_Layer("Split", f"{blob}_split", [blob], [*copies[blob]]))
    return result
