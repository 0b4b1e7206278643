"""The value of one node from those of others, in float64."""

import operator

import torch
from torch import Tensor, fx


@torch.no_grad()
def evaluated(graph_module: fx.GraphModule, node: fx.Node, values: dict[fx.Node, Tensor]) -> Tensor:
    """Return a node's value in float64, computed back to the nodes whose `values` are given; adds what it computes."""
    if node not in values:
        if node.op == "get_attr":
            constant = operator.attrgetter(str(node.target))(graph_module)
            values[node] = constant.double() if constant.is_floating_point() else constant
        else:
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: evaluated(graph_module, source, values))
            if node.op == "call_module":
                layer = graph_module.get_submodule(str(node.target))
                wide = {name: parameter.double() for name, parameter in layer.named_parameters(recurse=False)}
                values[node] = torch.func.functional_call(layer, wide, args)
            else:
                values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
    return values[node]
