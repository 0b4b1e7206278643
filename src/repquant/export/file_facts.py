"""What a file says of itself in its `metadata_props`: how its images are prepared, and what its classes are called.

Runtimes ignore these entries. Keys begin with `repquant.`; values other than texts are JSON.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import onnx

from repquant.errors import InputError
from repquant.targets.onnx_graph import read_graph

_PREFIX = "repquant."


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """How the images of a classifier are prepared, and where the file comes from; None for what is not known.

    Attributes:
        image_size: side of the square images, in pixels.
        crop_ratio: image size / resized shorter side.
        mean, std: of the channels, for normalization.
        classes: names, in the order of the logits.
        calibrator: that found the ranges; None for a float file.
        target: that the file was written for; None for a float file.
        version: of this package that wrote it.
    """

    image_size: int | None = None
    crop_ratio: float | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    classes: tuple[str, ...] | None = None
    calibrator: str | None = None
    target: str | None = None
    version: str | None = None

    def write(self, model: onnx.ModelProto) -> None:
        """Add what is known to a model."""
        for name, value in vars(self).items():
            if value is not None:
                text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
                model.metadata_props.add(key=f"{_PREFIX}{name}", value=text)

    @classmethod
    def read(cls, model: onnx.ModelProto) -> Self:
        """Return what a model says; of other tools' files nothing is known.

        Raises:
            InputError: an entry is not what this package writes.
        """
        found = {
            entry.key.removeprefix(_PREFIX): entry.value
            for entry in model.metadata_props
            if entry.key.startswith(_PREFIX)
        }
        try:
            return cls(
                image_size=int(found["image_size"]) if "image_size" in found else None,
                crop_ratio=float(found["crop_ratio"]) if "crop_ratio" in found else None,
                mean=_numbers(found.get("mean")),
                std=_numbers(found.get("std")),
                classes=tuple(map(str, json.loads(found["classes"]))) if "classes" in found else None,
                calibrator=found.get("calibrator"),
                target=found.get("target"),
                version=found.get("version"),
            )
        except (ValueError, TypeError) as error:
            raise InputError(f"the file's entries {_PREFIX}* are damaged ({error}); export it again") from error


def read_file_facts(path: Path) -> FileFacts:
    """Return what the ONNX file at `path` says of itself; the image size of other tools' by the shape of its input.

    Raises:
        InputError: it is no ONNX file, or has damaged entries.
    """
    graph = read_graph(path)
    facts = FileFacts.read(graph.model)
    names = [info.name for info in graph.model.graph.input if info.name not in graph.constants]
    shape = graph.shapes.get(names[0], ()) if names else ()
    if facts.image_size is None and len(shape) == 4 and shape[2] == shape[3] and isinstance(shape[3], int):
        facts = replace(facts, image_size=shape[3])
    return facts


def _numbers(text: str | None) -> tuple[float, float, float] | None:
    if text is None:
        return None
    red, green, blue = json.loads(text)
    return float(red), float(green), float(blue)
