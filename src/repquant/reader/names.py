"""Names of a file as those of Python and of modules."""

import re
from collections.abc import Iterable

from onnx import NodeProto
from torch import nn

from repquant.targets.onnx_graph import OnnxGraph, node_name

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "Linear", "MatMul")
_LAYER = ("", "weight", "bias")
_DOTTED = r"[A-Za-z_]\w*(\.\w+)+"
_TAKEN = frozenset(dir(nn.Module()))


def identifier(name: str) -> str:
    """Return a name of a file as one of Python."""
    cleaned = re.sub(r"\W", "_", name)
    return cleaned if cleaned.isidentifier() else f"_{cleaned}"


def module_path(node: NodeProto) -> str:
    """Return the path of the module that a node computes: torch writes /body/body.0/Conv for body.0."""
    path: list[str] = []
    for part in node_name(node).strip("/").split("/"):
        if path and part.startswith(f"{path[-1]}."):
            path.pop()
        path.append(part)
    if len(path) > 1 and re.fullmatch(rf"{node.op_type}(_\d+)?", path[-1]):
        path.pop()
    return ".".join(path)


def layer_path(node: NodeProto, constants: Iterable[str]) -> str:
    """Return the path of a layer: that of its constants, where one of them has the name of a module's, else its own."""
    for name in constants:
        path, _, role = name.rpartition(".")
        if role in ("weight", "bias") and re.fullmatch(_DOTTED, name):
            return path
    return module_path(node)


def constant_path(name: str, graph: OnnxGraph) -> str:
    """Return where a constant is kept: its own name where that is one of a module, else below its first reader's."""
    if not re.fullmatch(_DOTTED, name):
        reader = graph.readers[name][0]
        roles = _LAYER if reader.op_type in _LAYERS else ()
        role = next(iter(roles[list(reader.input).index(name) :]), "constant")
        name = f"{layer_path(reader, reader.input if roles else ())}.{role}"
    parts = [re.sub(r"\W", "_", part) or "_" for part in name.split(".")]
    return ".".join(f"{part}_" if part in _TAKEN else part for part in parts)
