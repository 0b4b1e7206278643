"""What computes with values that a network selected, as a detector does with the best of many places.

A selection is not continuous: rounding may put another place first, and all that is behind it then has other values.
Nothing could be compared there any more. (RT-DETR in integers throughout found next to nothing in OpenVINO.)
"""

import torch
from torch import fx

aten = torch.ops.aten

_SELECTING = frozenset({
    aten.topk.default, aten.sort.default, aten.sort.stable, aten.argsort.default, aten.argmax.default,
    aten.argmin.default, aten.nonzero.default, aten.multinomial.default,
})  # fmt: skip


def behind_selections(graph: fx.GraphModule) -> dict[str, str]:
    """Return name of a layer or operator -> the selection that its values depend on."""
    selections: dict[fx.Node, str] = {}
    for node in graph.graph.nodes:
        before = next((selections[operand] for operand in node.all_input_nodes if operand in selections), None)
        if before is not None:
            selections[node] = before
        elif node.target in _SELECTING:
            selections[node] = node.name
    return {
        str(node.target) if node.op == "call_module" else node.name: selection
        for node, selection in selections.items()
        if node.op in ("call_module", "call_function")
    }
