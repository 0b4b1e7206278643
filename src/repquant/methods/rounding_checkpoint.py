"""The file that keeps the layers which learned rounding has finished, for a run that is interrupted.

It holds hashes of all that the result depends on, so that no layer of another run is taken for one of this run.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, fx

from repquant.atomic import replace_file
from repquant.errors import InputError
from repquant.graph.plan import Plan
from repquant.graph.run import Batch, inputs_of
from repquant.methods.kernel_rounding import SHARES


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


def fingerprint(graph: fx.GraphModule, plan: Plan, batches: Iterable[Batch], options: object) -> dict[str, str]:
    """Return hashes of what the layers are learned from, by the names that a person is told.

    Args:
        graph: from `capture`.
        plan: for this network.
        batches: see `graph.run.inputs_of`.
        options: of the reconstruction; its `repr` tells all of it.
    """
    grids = {f"{kind}/{name}": grid for kind in ("grids", "weight_grids") for name, grid in vars(plan)[kind].items()}
    scales = {f"{name}/scale": grid.scale for name, grid in grids.items()}
    zero_points = {f"{name}/zero_point": grid.zero_point for name, grid in grids.items()}
    bits = f" {dict(plan.weight_bits)}" if plan.weight_bits else ""
    images = ((f"{number}/{i}", x) for number, b in enumerate(batches) for i, x in enumerate(inputs_of(graph, b)))
    return {
        "options": repr(options),
        "network": _digest(graph.state_dict(), graph.code),
        "grids": _digest(
            scales | zero_points, f"{plan.target} {plan.layout.layers} {plan.layout.roundings}{bits} {SHARES}"
        ),
        "images": _digest_in_order(images),
    }


def _save(path: Path, fingerprint: Mapping[str, str], layers: Mapping[str, LearnedLayer]) -> None:
    parts = [(f"{name}/{part}", x) for name, layer in layers.items() for part, x in vars(layer).items()]
    tensors = {key: x.contiguous() for key, x in parts if x is not None}
    with replace_file(path) as temporary:
        safetensors.torch.save_file(tensors, temporary, {**fingerprint, "results": _digest(tensors)})


def _digest(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """Return the SHA-256 of a text and of tensors with their names."""
    return _digest_in_order(sorted(tensors.items()), text)


def _digest_in_order(tensors: Iterable[tuple[str, Tensor]], text: str = "") -> str:
    digest = hashlib.sha256(text.encode())
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
