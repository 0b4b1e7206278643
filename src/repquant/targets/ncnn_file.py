"""An ncnn network as rules, writer and runtime see it: layers in a .param file, numbers in a .bin file beside it.

The format is that of ncnn's own documentation (docs/developer-guide/param-and-model-file-structure.md there). A file of
ours ends with a layer that gives the outputs in their order. Its name holds the checksum of the .bin file, as the two
are easily mixed up.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from repquant.errors import InputError

MAGIC = "7767517"
_SEAL = "repquant_"
_ARRAY = -23300
_OF_CONVOLUTIONS = (0, 1, 2, 3, 6, 7, 8, 11, 12, 13)
_WHOLE = {
    "Input": (0, 1, 2),
    "Convolution": _OF_CONVOLUTIONS,
    "ConvolutionDepthWise": _OF_CONVOLUTIONS,
    "InnerProduct": (8,),
}
"""Kind of a layer -> its settings that are read here and in `targets.ncnn`, all of them whole numbers."""


@dataclass(frozen=True, kw_only=True)
class NcnnLayer:
    """A layer.

    Attributes:
        kind: its type in ncnn.
        name: of the layer.
        reads: blobs.
        writes: blobs.
        settings: number of the setting -> what the file says; of an array its elements, with commas.
    """

    kind: str
    name: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    settings: Mapping[int, str]

    def setting(self, number: int, default: int = 0) -> int:
        """Return a setting that is a whole number: of a layer that was read, one of those in `_WHOLE`."""
        return int(self.settings.get(number, default))


@dataclass(frozen=True, kw_only=True)
class NcnnNetwork:
    """The layers of a file, in their order.

    Attributes:
        layers: as the file has them, at least one.
    """

    layers: tuple[NcnnLayer, ...]

    @property
    def inputs(self) -> dict[str, tuple[int | None, ...]]:
        """Name -> shape, (N, C, H, W) or shorter; None for any size, as the number of images always has."""
        return {layer.writes[0]: _shape(layer) for layer in self.layers if layer.kind == "Input"}

    @property
    def outputs(self) -> tuple[str, ...]:
        """What the last layer of a file of ours gives; of another one blobs that no layer reads."""
        if self.layers[-1].name.startswith(_SEAL):
            return self.layers[-1].writes
        read = {blob for layer in self.layers for blob in layer.reads}
        return tuple(blob for layer in self.layers for blob in layer.writes if blob not in read)


def numbers_of(path: Path) -> Path:
    """Return the .bin file that belongs to a .param file."""
    return path.with_suffix(".bin")


def seal(numbers: bytes) -> str:
    """Return the name of a layer that says which .bin file a .param file was written with."""
    return f"{_SEAL}{zlib.crc32(numbers):08x}"


def read_ncnn(path: Path) -> NcnnNetwork:
    """Return the layers of a .param file, whose numbers lie in a .bin file of the same name.

    Raises:
        InputError: one of them is missing, the .param file is damaged or of the binary kind, or the .bin file is not
            the one that was written with it.
    """
    for file in (path, numbers_of(path)):
        if not file.is_file():
            raise InputError(f"{file} does not exist; ncnn needs two files, {path.name} and {numbers_of(path).name}")
    try:
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        _require(lines[0] == [MAGIC])
        layers = tuple(map(_layer, lines[2:]))
        _require([int(count) for count in lines[1]] == [len(layers), sum(len(layer.writes) for layer in layers)])
        _require(len(layers) > 0)
        _require_order(layers)
    except (IndexError, ValueError) as error:
        raise InputError(f"{path} is no .param file of ncnn, or is damaged; write it again") from error
    seals = [layer.name for layer in layers if layer.name.startswith(_SEAL)]
    if seals and seals[0] != seal(numbers_of(path).read_bytes()):
        raise InputError(
            f"{numbers_of(path)} is damaged, or was not written with {path.name}; write both again, and copy them "
            "together"
        )
    return NcnnNetwork(layers=layers)


def _require(is_so: bool) -> None:
    """Accept what holds in every file.

    Raises:
        ValueError: it does not.
    """
    if not is_so:
        raise ValueError


def _layer(words: list[str]) -> NcnnLayer:
    reads, writes = int(words[2]), int(words[3])
    blobs, settings = words[4 : 4 + reads + writes], words[4 + reads + writes :]
    _require(min(reads, writes) >= 0)
    _require(len(blobs) == reads + writes)
    layer = NcnnLayer(
        kind=words[0],
        name=words[1],
        reads=tuple(blobs[:reads]),
        writes=tuple(blobs[reads:]),
        settings=dict(map(_setting, settings)),
    )
    _require(layer.kind != "Input" or (reads, writes) == (0, 1))
    for number in _WHOLE.get(layer.kind, ()):
        layer.setting(number)
    return layer


def _setting(text: str) -> tuple[int, str]:
    number, value = text.split("=")
    if int(number) > _ARRAY:
        return int(number), value
    count, *elements = value.split(",")
    _require(int(count) == len(elements))
    return _ARRAY - int(number), ",".join(elements)


def _require_order(layers: tuple[NcnnLayer, ...]) -> None:
    """Accept layers each of which reads what one in front of it has written, once: ncnn takes anything."""
    written: set[str] = set()
    for layer in layers:
        _require(written.issuperset(layer.reads))
        written.difference_update(layer.reads)
        _require(not written.intersection(layer.writes))
        written.update(layer.writes)


def _shape(layer: NcnnLayer) -> tuple[int | None, ...]:
    """Return the shape that an input has; a file need not say it."""
    width, height, channels = (layer.setting(number) for number in range(3))
    sizes = [size for size in (channels, height, width) if size]
    return (None, *sizes) if sizes else (None, None, None, None)
