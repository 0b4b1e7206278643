"""Networks on devices, in float32, and products in full precision on a GPU."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from repquant.errors import InputError
from repquant.graph.copies import copy_graph


def device_of(module: nn.Module) -> torch.device:
    """Return the device of a module's parameters and buffers; the CPU where it has none."""
    tensors = itertools.chain(module.parameters(), module.buffers())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


def require_float32(module: nn.Module) -> None:
    """Refuse a network whose parameters are not float32, or have no values.

    Raises:
        InputError: it says which parameter.
    """
    for name, parameter in module.named_parameters():
        if parameter.is_meta:
            raise InputError(f"parameter {name} has no values (device meta); load the weights of the network first")
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            kind = str(parameter.dtype).removeprefix("torch.")
            raise InputError(
                f"parameter {name} is {kind}; INT8 is made from float32: give model.float(), and such inputs"
            )


def on_device(graph: fx.GraphModule, device: torch.device) -> fx.GraphModule:
    """Return a captured network on a device: itself where it is there already, else a copy.

    Operators that make tensors make them there too, and so is the example; `graph.to` would leave both behind.
    """
    if all(tensor.device == device for tensor in itertools.chain(graph.parameters(), graph.buffers())):
        return graph
    moved = copy_graph(graph).to(device)
    for node in moved.graph.nodes:
        node.args, node.kwargs = fx.node.map_aggregate(
            (node.args, node.kwargs), lambda value: device if isinstance(value, torch.device) else value
        )
    moved.recompile()
    if (captured := moved.meta.get("repquant")) is not None:
        moved.meta["repquant"] = replace(captured, example=example_on(captured.example, device))
    return moved


def example_on(example: Any, device: torch.device) -> Any:
    """Return inputs of a network with their tensors on a device."""
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.detach().to(device), example)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Multiply float32 in float32 for the time of the block, where a GPU would take TF32, with 10 bits, for it.

    It holds for all threads: what runs beside it is as precise.
    """
    if device.type != "cuda":
        yield
        return
    parts: tuple[Any, ...] = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)  # type: ignore[attr-defined]
    before = [part.fp32_precision for part in parts]
    try:
        for part in parts:
            part.fp32_precision = "ieee"
        yield
    finally:
        for part, precision in zip(parts, before, strict=True):
            part.fp32_precision = precision
