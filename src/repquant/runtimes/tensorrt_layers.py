"""Which layers of a TensorRT engine run in which type, read off its inspector."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# How the inspector names types, alone or within the name of a memory format.
_TYPES = {
    "INT8": re.compile(r"\bint8\b", re.IGNORECASE),
    "FP8": re.compile(r"\bfp8", re.IGNORECASE),
    "BF16": re.compile(r"\b(bf16|bfloat16)\b", re.IGNORECASE),
    "FP16": re.compile(r"\b(half|fp16)\b", re.IGNORECASE),
    "FP32": re.compile(r"\b(float|fp32)\b", re.IGNORECASE),
}
REFORMAT, OTHER = "reformat", "other"


@dataclass(frozen=True)
class EngineLayer:
    """A layer of an engine.

    Attributes:
        name: the ONNX nodes that it was fused from.
        kind: "INT8", "FP16", "FP32" and so on: the type of its first input; "reformat" for a copy into another type or
            memory format, "other" where there is no type.
    """

    name: str
    kind: str


def read_layers(information: str) -> tuple[EngineLayer, ...]:
    """Return the layers in an inspector's JSON, of 10.x or 11.x, in the order of execution.

    Engines without detailed profiling list names alone; their layers are "other".
    """
    return tuple(_layer(entry) for entry in json.loads(information).get("Layers", ()))


def count_kinds(layers: tuple[EngineLayer, ...]) -> dict[str, int]:
    """Return how many layers there are of each kind, the most first."""
    kinds = [layer.kind for layer in layers]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds), key=lambda kind: (-kinds.count(kind), kind))}


def _layer(entry: str | Mapping[str, Any]) -> EngineLayer:
    if isinstance(entry, str):
        return EngineLayer(entry, OTHER)
    name = str(entry.get("Name", ""))
    if str(entry.get("LayerType", "")).lower() in ("reformat", "nonop") or name.startswith("Reformatting CopyNode"):
        return EngineLayer(name, REFORMAT)
    tensors = [*entry.get("Inputs", ()), *entry.get("Outputs", ())]
    return EngineLayer(name, next(filter(None, map(_type, tensors)), OTHER))


def _type(tensor: Mapping[str, Any]) -> str | None:
    # 11.x has a field for the type alone, which 10.x has together with the format.
    text = str(tensor.get("DataType") or tensor.get("Format/Datatype") or "")
    return next((kind for kind, pattern in _TYPES.items() if pattern.search(text)), None)
