"""Convolutions and linear layers of a graph as modules: exact classes, zero padding, the user's names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from repquant.graph.arguments import arguments
from repquant.graph.constants import Constant
from repquant.graph.names import place

aten = torch.ops.aten

_CONVOLUTIONS: dict[Any, type[Any]] = {
    aten.conv1d.default: nn.Conv1d,
    aten.conv1d.padding: nn.Conv1d,
    aten.conv2d.default: nn.Conv2d,
    aten.conv2d.padding: nn.Conv2d,
    aten.conv3d.default: nn.Conv3d,
    aten.conv3d.padding: nn.Conv3d,
    aten.conv_transpose1d.default: nn.ConvTranspose1d,
    aten.conv_transpose2d.input: nn.ConvTranspose2d,
    aten.conv_transpose3d.input: nn.ConvTranspose3d,
}
_PRODUCTS = {aten.matmul.default: ("self", "other"), aten.mm.default: ("self", "mat2")}


@dataclass(frozen=True, kw_only=True)
class _Call:
    """A call of a layer: the class, its input and constants, and for a convolution its geometry."""

    kind: type[Any]
    input: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    is_transposed: bool = False  # the weight of a product x @ W, which nn.Linear keeps as W^T
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] | str = ()
    dilation: tuple[int, ...] = ()
    output_padding: tuple[int, ...] = ()
    groups: int = 1


def layers_as_modules(graph: fx.Graph, constants: Mapping[fx.Node, Constant], root: nn.Module) -> None:
    """Replace, in place, calls of convolutions and linear layers with constant weights by modules that `root` holds.

    A module is named by the path of its weight without `.weight`; where the weight is computed, by the module that
    calls. A further call of the same weights is a module of its own, with the next free name.
    """
    for node in list(graph.nodes):
        call = _matched(node, constants)
        if call is None:
            continue
        padding = call.padding
        if isinstance(padding, str):
            padding = _resolved_padding(graph, node, call, constants)
            call = _matched(node, constants)
            assert call is not None
        layer = _built(call, padding, constants)
        name = place(root, _path(node, call, constants), layer)
        with graph.inserting_before(node):
            new = graph.create_node("call_module", name, (call.input,))
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
        graph.erase_node(node)


def make_layer(kind: type[Any], weight: Tensor, bias: Tensor | None, **geometry: Any) -> nn.Module:
    """Build `kind` around the given weight and bias, in their dtype and on their device, in evaluation mode."""
    layer: Any
    with torch.device("meta"):
        if kind is nn.Linear:
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
        else:
            groups = geometry["groups"]
            channels = (weight.shape[0], weight.shape[1] * groups)
            if not kind.__name__.startswith("ConvTranspose"):
                channels = (weight.shape[1] * groups, weight.shape[0])
            layer = kind(*channels, tuple(weight.shape[2:]), bias=bias is not None, **geometry)
    layer.weight = nn.Parameter(weight)
    if bias is not None:
        layer.bias = nn.Parameter(bias)
    built: nn.Module = layer.eval()
    return built


def _matched(node: fx.Node, constants: Mapping[fx.Node, Constant]) -> _Call | None:
    if node.op != "call_function" or node in constants:
        return None
    if node.target in _CONVOLUTIONS:
        call = _convolution(node)
    elif node.target is aten.linear.default:
        values = arguments(node)
        call = _Call(kind=nn.Linear, input=values["input"], weight=values["weight"], bias=values["bias"])
    elif node.target is aten.addmm.default:
        values = arguments(node)
        if values["beta"] != 1 or values["alpha"] != 1:
            return None
        call = _Call(
            kind=nn.Linear, input=values["mat1"], weight=values["mat2"], bias=values["self"], is_transposed=True
        )
    elif node.target in _PRODUCTS:
        left, right = (arguments(node)[name] for name in _PRODUCTS[node.target])
        call = _Call(kind=nn.Linear, input=left, weight=right, bias=None, is_transposed=True)
    else:
        return None
    return call if _has_constant_parameters(call, constants) else None


def _has_constant_parameters(call: _Call, constants: Mapping[fx.Node, Constant]) -> bool:
    if call.weight not in constants or call.input in constants:
        return False
    if call.kind is nn.Linear and constants[call.weight].plain.ndim != 2:
        return False
    return call.bias is None or (call.bias in constants and constants[call.bias].plain.ndim == 1)


def _convolution(node: fx.Node) -> _Call:
    values = arguments(node)
    kind = _CONVOLUTIONS[node.target]
    rank = int(kind.__name__[-2])

    def each(value: Sequence[int]) -> tuple[int, ...]:
        return tuple(value) * rank if len(value) == 1 else tuple(value)

    padding = values["padding"]
    return _Call(
        kind=kind,
        input=values["input"],
        weight=values["weight"],
        bias=values["bias"],
        stride=each(values["stride"]),
        padding=padding if isinstance(padding, str) else each(padding),
        dilation=each(values["dilation"]),
        output_padding=each(values.get("output_padding", [0])),
        groups=values["groups"],
    )


def _resolved_padding(
    graph: fx.Graph, node: fx.Node, call: _Call, constants: Mapping[fx.Node, Constant]
) -> tuple[int, ...]:
    """Return a string padding in numbers; where 'same' is uneven, put the pad in front of the node."""
    kernel = constants[call.weight].plain.shape[2:]
    if call.padding == "valid":
        return (0,) * len(kernel)
    total = [dilation * (size - 1) for dilation, size in zip(call.dilation, kernel, strict=True)]
    if all(width % 2 == 0 for width in total):
        return tuple(width // 2 for width in total)
    # The last dimension comes first in a pad.
    widths = [width for size in reversed(total) for width in (size // 2, size - size // 2)]
    with graph.inserting_before(node):
        pad = graph.call_function(aten.pad.default, (call.input, widths))
    copy_meta(node, pad, aten.pad.default(call.input.meta["val"], widths))
    node.args = (pad, *node.args[1:])
    return (0,) * len(kernel)


def copy_meta(source: fx.Node, new: fx.Node, val: Any) -> None:
    """Give a new node the place in the user's code of the one that it stands for, and its own value."""
    new.meta = dict(source.meta) | {"val": val}


def _built(call: _Call, padding: tuple[int, ...], constants: Mapping[fx.Node, Constant]) -> nn.Module:
    weight = _stored(constants[call.weight])
    bias = None if call.bias is None else _stored(constants[call.bias])
    if call.kind is nn.Linear:
        return make_layer(nn.Linear, weight.T.contiguous() if call.is_transposed else weight, bias)
    geometry: dict[str, Any] = {"stride": call.stride, "dilation": call.dilation, "groups": call.groups}
    if call.kind.__name__.startswith("ConvTranspose"):
        geometry["output_padding"] = call.output_padding
    return make_layer(call.kind, weight, bias, padding=padding, **geometry)


def _stored(constant: Constant) -> Tensor:
    """Return a copy in the network's dtype that shares nothing with the user's module."""
    stored: Tensor = constant.wide.to(constant.plain.dtype, copy=True, memory_format=torch.contiguous_format)
    return stored


def _path(node: fx.Node, call: _Call, constants: Mapping[fx.Node, Constant]) -> str:
    path = constants[call.weight].path
    if path is None:  # computed: the module that calls is the one a person would name
        modules = [name for name, _ in node.meta.get("nn_module_stack", {}).values() if name]
        path = modules[-1] if modules else node.name
    elif path == "weight":
        path = node.name
    return path.removesuffix(".weight")
