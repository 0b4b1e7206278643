"""Any module as a graph of exact layers and functional operators."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from repquant.graph.batch_norm import fold_batch_norms
from repquant.graph.constants import Constant, evaluate_constants
from repquant.graph.copies import copy_graph
from repquant.graph.exporting import Example, export_functional
from repquant.graph.layers import free_name, layers_as_modules
from repquant.graph.noops import remove_noops, remove_unused


@dataclass(frozen=True, kw_only=True)
class Captured:
    """What a captured graph remembers of its capture, in `graph_module.meta["repquant"]`.

    `example` is the input it was captured with. With `dynamic_batch` the graph takes any batch size; without, only
    that of the example.
    """

    example: Any
    dynamic_batch: bool


def capture(module: nn.Module, example: Example) -> fx.GraphModule:
    """Return the graph of a module in evaluation mode, called as the module is.

    In the graph, convolutions and linear layers with constant weights are `call_module` nodes of exact `torch.nn`
    classes with zero padding, named as in the user's module; each call has a module of its own. Batch normalization is
    folded. All else is `call_function` of functional ATen operators; constants are computed and stored as buffers and
    parameters. `node.meta["val"]` holds shapes and dtypes, `meta["stack_trace"]` the user's line. Captured modules come
    back as a copy. The module is not changed, and shares no tensor with the graph.

    Args:
        module: any module that `torch.export` can follow.
        example: a tensor, a tuple of the positional inputs, or a dict of the keyword inputs. The batch size stays free
            where dimension 0 of the inputs can vary.

    Raises:
        InputError: the example doesn't fit the module, or the module can't be captured; the message names the line.
    """
    if isinstance(module, fx.GraphModule) and isinstance(module.meta.get("repquant"), Captured):
        return copy_graph(module)
    exported, dynamic_batch = export_functional(module, example)
    graph, root = exported.graph, nn.Module()
    remove_noops(graph)
    remove_unused(graph)
    constants = evaluate_constants(exported)
    layers_as_modules(graph, constants, root)
    fold_batch_norms(graph, constants, root)
    remove_unused(graph)
    _store(graph, constants, root)
    for node in graph.nodes:
        node.meta = {key: node.meta[key] for key in ("val", "stack_trace", "nn_module_stack") if key in node.meta}
    captured = fx.GraphModule(root, graph, class_name=type(module).__name__).eval()
    captured.graph.lint()
    example = pytree.tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, example)
    captured.meta["repquant"] = Captured(example=example, dynamic_batch=dynamic_batch)
    return captured


def _store(graph: fx.Graph, constants: dict[fx.Node, Constant], root: nn.Module) -> None:
    """Keep, in place, the constants that operators still use, under their own names; drop how they were computed."""
    for node in list(graph.nodes):
        if node not in constants or not any(user not in constants for user in node.users):
            continue
        constant = constants[node]
        if not isinstance(constant.plain, Tensor):  # a tuple, whose parts getitem takes
            continue
        value = constant.wide.to(constant.plain.dtype, copy=True)
        name = _registered(root, constant.path or f"constants.{node.name}", value, _is_parameter(constant))
        if node.op == "get_attr":
            node.target = name
            continue
        with graph.inserting_before(node):
            new = graph.create_node("get_attr", name)
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new, delete_user_cb=lambda user: user not in constants)
    remove_unused(graph)


def _is_parameter(constant: Constant) -> bool:
    return isinstance(constant.plain, nn.Parameter)


def _registered(root: nn.Module, path: str, value: Tensor, is_parameter: bool) -> str:
    name = free_name(root, path)
    parent = root
    *containers, leaf = name.split(".")
    for part in containers:
        if not isinstance(getattr(parent, part, None), nn.Module):
            parent.add_module(part, nn.Module())
        parent = parent.get_submodule(part)
    if is_parameter:
        parent.register_parameter(leaf, nn.Parameter(value))
    else:
        parent.register_buffer(leaf, value)
    return name
