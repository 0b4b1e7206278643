"""Nodes that select: a difference in the last digit is a large one behind them, so files are compared before them."""

import math
from copy import copy
from dataclasses import replace
from pathlib import Path

import onnx

from repquant.reader.file import inputs_of
from repquant.reader.network import OnnxNetwork
from repquant.targets.onnx_graph import OnnxGraph, read_graph

_MOST_BYTES = 2_000_000_000  # of one file without others beside it
_SELECTIONS = frozenset({"ArgMax", "TopK"})


def comparable(graph: OnnxGraph, path: Path) -> list[str]:
    """Return the names of the values to compare: outputs before any selection, and what the first selections read.

    Args:
        graph: as it was read.
        path: of the file; what it does not have by name in its main graph is left out.
    """
    after: set[str] = set()
    reads: list[str] = []
    for node in graph.nodes:
        if node.op_type in _SELECTIONS or after.intersection(node.input):
            after.update(node.output)
        if node.op_type in _SELECTIONS and not after.intersection(node.input):
            reads.append(node.input[0])
    outputs = [value.name for value in graph.model.graph.output if value.name not in after]
    if not reads or sum(4 * math.prod(tensor.dims) for tensor in graph.model.graph.initializer) > _MOST_BYTES:
        return outputs
    in_file = {name for node in onnx.load(path, load_external_data=False).graph.node for name in node.output}
    given = {value.name for value in inputs_of(graph)}
    inner = [name for name in dict.fromkeys(reads) if name in in_file and name in graph.producers]
    return [*outputs, *(name for name in inner if name not in {*outputs, *given})]


def network_giving(network: OnnxNetwork, names: list[str]) -> OnnxNetwork:
    """Return the network with these values as its outputs; it shares the parameters."""
    cut = copy(network)
    cut.program = replace(network.program, outputs=tuple(names))
    return cut


def file_giving(path: Path, names: list[str], folder: Path) -> Path:
    """Return the file itself where these values are its outputs, else one in the folder that gives them."""
    model = onnx.load(path, load_external_data=False)
    known = {value.name: value for value in model.graph.output}
    if names == list(known):
        return path
    model = read_graph(path).model
    del model.graph.output[:]
    model.graph.output.extend(known.get(name, onnx.ValueInfoProto(name=name)) for name in names)
    onnx.save(model, folder / path.name)
    return folder / path.name
