"""Names of a file as those of Python and of modules."""

import keyword
import re
from collections.abc import Collection, Iterable

from onnx import ModelProto, NodeProto
from torch import nn

from repquant.targets.onnx_graph import OnnxGraph, node_name

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "Linear", "MatMul")
_LAYER = ("", "weight", "bias")
_DOTTED = r"[A-Za-z_]\w*(\.\w+)+"
_TAKEN = frozenset(dir(nn.Module())) | {"program", "run"}  # those of `OnnxNetwork`


def identifiers(names: Iterable[str]) -> dict[str, str]:
    """Return names of a file, each with one of Python that no other has and that may name a parameter of a method."""
    found: dict[str, str] = {}
    for name in names:
        cleaned = re.sub(r"\W", "_", name)
        cleaned = cleaned if cleaned.isidentifier() else f"_{cleaned}"
        cleaned = f"{cleaned}_" if keyword.iskeyword(cleaned) or cleaned == "self" else cleaned
        found[name] = free_name(cleaned, found.values())
    return found


def names_in(model: ModelProto) -> set[str]:
    """Return the names of all values of the main graph."""
    graph = model.graph
    named = {each.name for each in (*graph.initializer, *graph.input, *graph.output)}
    return named.union(*((*node.input, *node.output) for node in graph.node))


def free_name(name: str, taken: Collection[str]) -> str:
    """Return the first of `name`, `name_1`, `name_2` ... that is not taken."""
    found, count = name, 0
    while found in taken:
        count += 1
        found = f"{name}_{count}"
    return found


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
        if not graph.readers.get(name):  # it is an output
            cleaned = re.sub(r"\W", "_", name)
            return f"constants.{cleaned}"
        reader = graph.readers[name][0]
        roles = _LAYER if reader.op_type in _LAYERS else ()
        role = next(iter(roles[list(reader.input).index(name) :]), "constant")
        name = f"{layer_path(reader, reader.input if roles else ())}.{role}"
    parts = [re.sub(r"\W", "_", part) or "_" for part in name.split(".")]
    return ".".join(f"{part}_" if part in _TAKEN else part for part in parts)
