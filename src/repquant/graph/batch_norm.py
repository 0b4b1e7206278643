"""Batch normalization by its running statistics: folded into the layer in front, or a layer of its own."""

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from repquant.graph.arguments import arguments
from repquant.graph.constants import Constant
from repquant.graph.layers import make_layer
from repquant.graph.names import place

aten = torch.ops.aten


def fold_batch_norms(graph: fx.Graph, constants: Mapping[fx.Node, Constant], root: nn.Module) -> None:
    """Fold, in place, each normalization into the layer in front of it, in float64.

    Where the layer has other users, or there is none, a normalization of (N, C, H, W) becomes a depthwise 1x1
    convolution with the normalization's name, and one of (N, C) goes into the linear layers behind it. Any other stays
    an operator.
    """
    for node in list(graph.nodes):
        if node.target is not operator.getitem or node.args[1] != 0:
            continue
        norm = node.args[0]
        if not isinstance(norm, fx.Node) or norm.target is not aten._native_batch_norm_legit_no_training.default:
            continue
        values = arguments(norm)
        parts = [values[name] for name in ("weight", "bias", "running_mean", "running_var")]
        if any(part is not None and part not in constants for part in parts):
            continue
        source = values["input"]
        scale, shift = _scale_shift(parts, values["eps"], constants)
        layer = _layer_in_front(source, root)
        behind = [_linear_layer(user, root) for user in node.users]
        if layer is not None:
            _absorb(layer, scale, shift)
            new = source
        elif source.meta["val"].ndim == 2 and all(behind):
            for linear in behind:
                _absorb_in_front(linear, scale, shift)
            new = source
        elif source.meta["val"].ndim == 4:
            new = _depthwise(graph, node, source, scale, shift, _path(parts, node, constants), root)
        else:
            continue
        node.replace_all_uses_with(new)
        graph.erase_node(node)
        graph.erase_node(norm)


def _scale_shift(
    parts: list[fx.Node | None], eps: float, constants: Mapping[fx.Node, Constant]
) -> tuple[Tensor, Tensor]:
    gamma, beta, mean, var = (None if part is None else constants[part].wide for part in parts)
    assert mean is not None
    assert var is not None
    scale = torch.rsqrt(var + eps) if gamma is None else gamma * torch.rsqrt(var + eps)
    return scale, (0 if beta is None else beta) - mean * scale


def _layer_in_front(source: fx.Node, root: nn.Module) -> Any:
    """Return the layer whose outputs are dimension 1 of a node and that nothing else reads; None if there is none."""
    rank = source.meta["val"].ndim
    while source.target is aten.reshape.default and rank == 2 and len(source.users) == 1:
        source = source.all_input_nodes[0]  # rows of a linear layer in one dimension
    if source.op != "call_module" or len(source.users) > 1:
        return None
    layer: Any = root.get_submodule(str(source.target))
    if isinstance(layer, nn.Linear):
        return layer if rank == 2 else None
    return layer if rank == source.meta["val"].ndim == layer.weight.ndim else None


def _linear_layer(node: fx.Node, root: nn.Module) -> Any:
    layer = root.get_submodule(str(node.target)) if node.op == "call_module" else None
    return layer if isinstance(layer, nn.Linear) else None


@torch.no_grad()
def _absorb(layer: Any, scale: Tensor, shift: Tensor) -> None:
    weight = layer.weight.double()
    if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        # (I, O/groups, ...): group g makes the outputs g * O/groups and on.
        grouped = weight.unflatten(0, (layer.groups, -1))
        factors = scale.view(layer.groups, 1, -1, *[1] * (weight.ndim - 2))
        weight = (grouped * factors).flatten(0, 1)
    else:
        weight = weight * scale.view(-1, *[1] * (weight.ndim - 1))
    bias = shift if layer.bias is None else layer.bias.double() * scale + shift
    dtype = layer.weight.dtype
    layer.weight = nn.Parameter(weight.to(dtype))
    layer.bias = nn.Parameter(bias.to(dtype))


@torch.no_grad()
def _absorb_in_front(layer: nn.Linear, scale: Tensor, shift: Tensor) -> None:
    weight, dtype = layer.weight.double(), layer.weight.dtype
    bias = weight @ shift if layer.bias is None else weight @ shift + layer.bias.double()
    layer.weight = nn.Parameter((weight * scale).to(dtype))
    layer.bias = nn.Parameter(bias.to(dtype))


def _depthwise(
    graph: fx.Graph, node: fx.Node, source: fx.Node, scale: Tensor, shift: Tensor, path: str, root: nn.Module
) -> fx.Node:
    channels, dtype = len(scale), node.meta["val"].dtype
    geometry = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": channels}
    layer = make_layer(nn.Conv2d, scale.to(dtype).view(channels, 1, 1, 1), shift.to(dtype), **geometry)
    with graph.inserting_before(node):
        new = graph.create_node("call_module", place(root, path, layer), (source,))
    new.meta = dict(node.meta)
    return new


def _path(parts: list[fx.Node | None], node: fx.Node, constants: Mapping[fx.Node, Constant]) -> str:
    path = constants[parts[3]].path  # type: ignore[index]
    if path is None or "." not in path:
        return node.name
    return path.rpartition(".")[0]
