"""Any module as a graph of exact layers and functional operators."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from repquant.graph.batch_norm import fold_batch_norms
from repquant.graph.constants import Constant, evaluate_constants
from repquant.graph.copies import copy_graph
from repquant.graph.devices import device_of, example_on
from repquant.graph.exporting import Example, export_functional
from repquant.graph.joins import part_joins
from repquant.graph.layers import layers_as_modules
from repquant.graph.names import place
from repquant.graph.noops import remove_neutral, remove_noops, remove_unused


@dataclass(frozen=True, kw_only=True, eq=False)
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
            where dimension 0 of the inputs can vary. It goes to the device of the module, where the graph is then.

    Raises:
        InputError: the example doesn't fit the module, or the module can't be captured; the message names the line.
    """
    if isinstance(module, fx.GraphModule) and isinstance(module.meta.get("repquant"), Captured):
        return copy_graph(module)
    example = example_on(example, device_of(module))
    exported, dynamic_batch = export_functional(module, example)
    graph, root = exported.graph, nn.Module()
    remove_noops(graph)
    part_joins(graph)
    remove_unused(graph)
    constants = evaluate_constants(exported)
    remove_neutral(graph, constants)
    layers_as_modules(graph, constants, root)
    fold_batch_norms(graph, constants, root)
    remove_unused(graph)
    _store(exported, constants, root)
    for node in graph.nodes:
        node.meta = {key: node.meta[key] for key in ("val", "stack_trace", "nn_module_stack") if key in node.meta}
    captured = fx.GraphModule(root, graph, class_name=type(module).__name__).eval()
    captured.graph.lint()
    captured.meta["repquant"] = Captured(example=example, dynamic_batch=dynamic_batch)
    return captured


def _store(exported: fx.GraphModule, constants: dict[fx.Node, Constant], root: nn.Module) -> None:
    """Keep, in place, what operators still read, under its own name; drop how constants were computed."""
    graph = exported.graph
    for node in list(graph.nodes):
        if not any(user not in constants for user in node.users):
            continue
        if node.op == "get_attr" and node not in constants:  # the body of a control flow operator
            node.target = place(root, str(node.target), exported.get_submodule(str(node.target)))
        elif node in constants and isinstance(constants[node].plain, Tensor):  # not a tuple, whose parts getitem takes
            constant = constants[node]
            name = place(root, constant.path or f"constants.{node.name}", _stored(constant))
            with graph.inserting_before(node):
                new = graph.create_node("get_attr", name, name=node.name)
            new.meta = dict(node.meta)
            node.replace_all_uses_with(new, delete_user_cb=lambda user: user not in constants)
    remove_unused(graph)


def _stored(constant: Constant) -> Tensor:
    """Return a copy in the network's dtype that shares nothing with the user's module."""
    value: Tensor = constant.wide.to(constant.plain.dtype, copy=True)
    if isinstance(constant.plain, nn.Parameter):
        return nn.Parameter(value, requires_grad=constant.plain.requires_grad)
    return value
