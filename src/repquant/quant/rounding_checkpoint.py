"""The file that keeps the layers which learned rounding has finished, for a run that is interrupted.

It holds hashes of all that the result depends on, so that no layer of another run is taken for one of this run.
"""

import hashlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
from torch import Tensor, nn

from repquant.atomic import replace_file
from repquant.errors import InputError
from repquant.models.safetensors_bytes import serialized
from repquant.regular_files import require_regular
from repquant.simulation.layers import FakeQuantize, QuantizedLayer


@dataclass(frozen=True)
class LearnedLayer:
    """What was learned of a layer: integers (O, ...) int8, the scale () or (O,) of their grid, and the float bias."""

    integers: Tensor
    scale: Tensor
    bias: Tensor | None


class LearnedLayers:
    """The finished layers by name, and the file, if any, that keeps them.

    Args:
        path: of the file; layers that it holds already are loaded, and its folder is made.
        fingerprint: gives the hashes of what the layers are learned from; it is asked only if there is a path.

    Attributes:
        layers: name -> what was learned.

    Raises:
        InputError: the file is damaged, of other arguments, or can't be written.
    """

    def __init__(self, path: Path | None, fingerprint: Callable[[], dict[str, str]]) -> None:
        self.layers: dict[str, LearnedLayer] = {}
        self._path = path
        if path is None:
            return
        self._fingerprint = fingerprint()
        if path.exists():
            self.layers = load_layers(path, self._fingerprint)
            return
        with suppress(OSError):  # what is wrong with the folder is said when the file is written
            path.parent.mkdir(parents=True, exist_ok=True)
        _save(path, self._fingerprint, self.layers)  # a path that can't be written is found out before the work is done

    def add(self, name: str, layer: LearnedLayer) -> None:
        """Add a layer; it is in the file afterwards."""
        self.layers[name] = layer
        if self._path is not None:
            _save(self._path, self._fingerprint, self.layers)


def load_layers(path: Path, fingerprint: Mapping[str, str]) -> dict[str, LearnedLayer]:
    """Return the layers in a file that was written for the same arguments.

    Raises:
        InputError: the file is damaged, or its hashes are not those of `fingerprint`.
    """
    try:
        require_regular(path)
        with safetensors.safe_open(path, framework="pt") as file:
            started_with = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # it is no mapping
        if started_with.get("results") != _digest(tensors):
            raise OSError("its checksum is wrong")
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"{path} is damaged or no checkpoint of a reconstruction ({error})") from error
    others = ", ".join(name for name, value in fingerprint.items() if started_with.get(name) != value)
    if others:
        raise InputError(
            f"checkpoint {path} is of another reconstruction, with other {others}; give what it was started with, "
            "or another file, or remove it to start from the beginning"
        )
    return {
        name: LearnedLayer(tensors[f"{name}/integers"], tensors[f"{name}/scale"], tensors.get(f"{name}/bias"))
        for name in dict.fromkeys(key.rpartition("/")[0] for key in tensors)
    }


def fingerprint(model: nn.Module, quantized: nn.Module, images: Tensor, options: object) -> dict[str, str]:
    """Return hashes of what the layers are learned from, by the names that a person is told.

    Args:
        model: deploy model in float.
        quantized: the same model after `quantize_model`.
        images: (N, 3, H, W).
        options: of the reconstruction; its `repr` tells all of it.
    """
    modules = list(quantized.modules())
    inputs = [(x.scale, x.zero_point, x.scheme) for x in modules if isinstance(x, FakeQuantize)]
    weights = [x.integers.weight_grid.scheme for x in modules if isinstance(x, QuantizedLayer)]
    return {
        "options": repr(options),
        "model": _digest(model.state_dict(), repr(model)),
        "grids": _digest(quantized.state_dict(), f"{quantized} {inputs} {weights}"),
        "images": _digest({"images": images}),
    }


def _save(path: Path, fingerprint: Mapping[str, str], layers: Mapping[str, LearnedLayer]) -> None:
    parts = [(f"{name}/{part}", x) for name, layer in layers.items() for part, x in vars(layer).items()]
    tensors = {key: x.contiguous() for key, x in parts if x is not None}
    with replace_file(path) as temporary:
        temporary.write_bytes(serialized(tensors, {**fingerprint, "results": _digest(tensors)}))


def _digest(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """Return the SHA-256 of a text and of tensors with their names."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
