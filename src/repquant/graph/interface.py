"""A captured network with flat inputs and outputs, and their names, as a file has them."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from repquant.graph.capture import Captured
from repquant.graph.copies import copy_graph


def captured_of(graph: fx.GraphModule) -> Captured:
    """Return what a captured network remembers of its capture."""
    captured = graph.meta["repquant"]
    assert isinstance(captured, Captured)
    return captured


def with_example(graph: fx.GraphModule, example: Any) -> fx.GraphModule:
    """Return a copy of a captured network for inputs of another size; its operators have to take them."""
    changed = copy_graph(graph)
    changed.meta["repquant"] = replace(captured_of(graph), example=example)
    return changed


def flattened(graph: fx.GraphModule) -> fx.GraphModule:
    """Return a copy that takes its input tensors one by one, in order, and returns a tuple of its output tensors."""
    flat = copy_graph(graph)
    flat.graph.set_codegen(fx.graph.CodeGen())
    output = flat.graph.output_node()
    output.args = (tuple(value for value in pytree.tree_leaves(output.args) if isinstance(value, fx.Node)),)
    flat.recompile()
    return flat


def flat_example(graph: fx.GraphModule) -> tuple[Tensor, ...]:
    """Return the inputs that a network was captured with, one by one; where its batch is free, at least two images.

    An exporter takes a dimension of 1 for a constant.
    """
    captured = captured_of(graph)
    inputs = pytree.tree_leaves(captured.example)
    return tuple(torch.cat([x, x]) if captured.dynamic_batch and x.shape[0] == 1 else x for x in inputs)


def input_names(graph: fx.GraphModule) -> list[str]:
    """Return the names of the arguments."""
    return [node.name for node in graph.graph.nodes if node.op == "placeholder"]


def output_names(graph: fx.GraphModule) -> list[str]:
    """Return a name for each output tensor: the dict keys that lead to it, else `output`, numbered if there are more.

    Tensors in a list or tuple under the same keys are numbered too.

    Args:
        graph: from `capture`.
    """
    values = pytree.tree_leaves(graph.graph.output_node().args)
    codegen = graph.graph._codegen
    spec = codegen.pytree_info.out_spec if hasattr(codegen, "pytree_info") else None
    tree = values if spec is None else pytree.tree_unflatten(values, spec)
    paths = [path for path, value in pytree.tree_flatten_with_path(tree)[0] if isinstance(value, fx.Node)]
    keys = ["_".join(str(key.key) for key in path if isinstance(key, pytree.MappingKey)) for path in paths]
    keys = [key or "output" for key in keys]
    numbers = {key: count() for key in keys}
    return [f"{key}_{next(numbers[key])}" if keys.count(key) > 1 else key for key in keys]


def as_returned(graph: fx.GraphModule, outputs: Sequence[Tensor]) -> Any:
    """Return output tensors in the structure in which the user's module returns them.

    Args:
        graph: from `capture`.
        outputs: in the order of `output_names`.
    """
    remaining = iter(outputs)
    nodes = pytree.tree_leaves(graph.graph.output_node().args)
    values = [next(remaining) if isinstance(node, fx.Node) else node for node in nodes]
    codegen = graph.graph._codegen
    return pytree.tree_unflatten(values, codegen.pytree_info.out_spec) if hasattr(codegen, "pytree_info") else values
