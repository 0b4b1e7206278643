"""Nodes by the names of the modules that they come from."""

import ast
from collections import Counter

import onnx

_SCOPES = "pkg.torch.onnx.name_scopes"


def name_nodes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy in which a node of the module `stages.0.conv` is named `stages.0.conv/Conv`.

    Further nodes of the same operator in a module are numbered from 1. Names come from what torch's exporter notes at
    each node: the modules around it, the innermost last, and the traced operation behind them.
    """
    model = onnx.ModelProto.FromString(model.SerializeToString())
    seen: Counter[str] = Counter()
    for node in model.graph.node:
        scopes = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES), "[]")
        modules = ast.literal_eval(scopes)[:-1]
        name = f"{modules[-1]}/{node.op_type}" if modules and modules[-1] else node.op_type
        node.name = f"{name}_{seen[name]}" if seen[name] else name
        seen[name] += 1
    return model
