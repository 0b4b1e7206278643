"""A simulated network in the operators that ExecuTorch reads: torch's `quantized_decomposed`, with its integers.

XNNPACK runs an operator in integers where all that it reads comes from a `dequantize` of its own, and one `quantize`
alone reads it. The network is written so wherever the simulation allows. What is not found so computes in float, on the
same values, so that the file means the same as the simulation by construction.
"""

import operator
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from repquant.errors import InputError
from repquant.export.executorch.forms import in_known_forms
from repquant.graph.interface import flattened
from repquant.graph.names import place
from repquant.graph.operators import Kind, aten, find_operator
from repquant.numerics.affine import Grid
from repquant.simulation.layers import (
    FakeQuantize,
    QuantizedConv1d,
    QuantizedConv2d,
    QuantizedConvTranspose1d,
    QuantizedConvTranspose2d,
    QuantizedLayer,
    QuantizedLinear,
    QuantizedMatmul,
)

Rounding = tuple[float, int, int, int, torch.dtype]
"""Arguments of `quantize_per_tensor` and its inverse: scale, zero point, lowest, highest, type."""

_LOWEST, _HIGHEST = -128, 127
_FUSED_CLIPS = (aten.relu.default, aten.hardtanh.default)
_LINES = (QuantizedConv1d, QuantizedConvTranspose1d)
_TRANSPOSED = (QuantizedConvTranspose1d, QuantizedConvTranspose2d)
_FUNCTIONS: dict[type[nn.Module], Any] = {
    QuantizedConv1d: F.conv2d,
    QuantizedConv2d: F.conv2d,
    QuantizedConvTranspose1d: F.conv_transpose2d,
    QuantizedConvTranspose2d: F.conv_transpose2d,
    QuantizedLinear: F.linear,
}


def decomposed(simulated: fx.GraphModule) -> fx.GraphModule:
    """Return a copy of a simulated network that rounds by operators and holds its integers; a float one as it is.

    A layer that ends on a grid reads int8 weights, and its bias is a float, an integer times input scale times weight
    scale, of which XNNPACK's part of the file holds the integer. A linear layer that does not end on a grid reads int8
    weights in float arithmetic, and its bias is added behind it. Weights of other layers are floats, each an integer
    times its scale.

    Args:
        simulated: with signed or unsigned activations of 8 bits, on the CPU.

    Raises:
        InputError: activations of fewer bits.
    """
    graph = flattened(simulated)
    in_known_forms(graph)
    writer = _Writer(graph)
    for node in list(graph.graph.nodes):
        writer.round_operands(node)
    for node in reversed(graph.graph.nodes):
        writer.round_before_view(node)
    for node in list(graph.graph.nodes):
        writer.write_layer(node)
    graph.graph.eliminate_dead_code()
    graph.graph.lint()
    graph.recompile()
    return graph


class _Writer:
    """Replaces the modules of a simulated network, in place."""

    def __init__(self, network: fx.GraphModule) -> None:
        import torch.ao.quantization.fx._decomposed  # its import defines the operators

        self._network, self._graph = network, network.graph
        self._operators = torch.ops.quantized_decomposed
        self._rounded: dict[tuple[fx.Node, Rounding], fx.Node] = {}

    def round_operands(self, node: fx.Node) -> None:
        """Write what is rounded by a node or in front of it."""
        module = self._module(node)
        if isinstance(module, FakeQuantize):
            rounding = _rounding(module)
            for user in list(node.users):
                user.replace_input_with(node, self._read(node.args[0], rounding, user))
            self._graph.erase_node(node)
        elif isinstance(module, QuantizedLayer):
            node.update_arg(0, self._read(node.args[0], _rounding(module.input), node))
        elif isinstance(module, QuantizedMatmul):
            for index, fake in enumerate((module.left, module.right)):
                node.update_arg(index, self._read(node.args[index], _rounding(fake), node))
            node.op, node.target = "call_function", aten.matmul.default

    def round_before_view(self, node: fx.Node) -> None:
        """Round what a view reads, where all its readers do so: XNNPACK looks for that right behind an operator."""
        row = find_operator(node)
        is_view = row is not None and row.kind is Kind.VIEW and node.target is not operator.getitem
        roundings = set(self._roundings_behind(node)) if is_view else set()
        if len(roundings) == 1 and (rounding := roundings.pop()) is not None:
            node.update_arg(0, self._read(node.args[0], rounding, node))

    def write_layer(self, node: fx.Node) -> None:
        """Write a layer as a function of its integers."""
        layer = self._module(node)
        if not isinstance(layer, QuantizedLayer):
            return
        ends_on_grid = _has_integer_kernel(layer) and self._end_on_grid(node)
        bias = layer.integers.float_bias()
        is_apart = isinstance(layer, QuantizedLinear) and not ends_on_grid
        with self._graph.inserting_before(node):
            added = None if bias is None else self._constant(f"{node.target}.bias", bias)
            weight = (
                self._integer_weight(layer, str(node.target))
                if ends_on_grid or is_apart
                else self._constant(f"{node.target}.weight", _on_images(layer, layer.integers.float_weight()))
            )
            parameters = (node.args[0], weight, None if is_apart else added)
            result = self._call(_FUNCTIONS[type(layer)], parameters, node, _geometry(layer))
            if is_apart and added is not None:
                result = self._call(aten.add.Tensor, (result, added), node)
        node.replace_all_uses_with(result)
        self._graph.erase_node(node)

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self._network.get_submodule(str(node.target)) if node.op == "call_module" else None

    def _read(self, source: Any, rounding: Rounding, reader: fx.Node) -> fx.Node:
        """Return a value as one reader sees it: rounded, by an operator of its own, from integers that all share."""
        integers = self._quantize(source, rounding)
        with self._graph.inserting_before(reader):
            return self._call(self._operators.dequantize_per_tensor.default, (integers, *rounding), source)

    def _quantize(self, source: fx.Node, rounding: Rounding) -> fx.Node:
        if source.target is self._operators.dequantize_per_tensor.default and source.args[1:] == rounding:
            before = source.args[0]
            assert isinstance(before, fx.Node)
            return before
        key = (source, rounding)
        if key not in self._rounded:
            placeholders = [node for node in self._graph.nodes if node.op == "placeholder"]
            with self._graph.inserting_after(placeholders[-1] if source.op == "placeholder" else source):
                self._rounded[key] = self._graph.call_function(
                    self._operators.quantize_per_tensor.default, (source, *rounding)
                )
        return self._rounded[key]

    def _end_on_grid(self, node: fx.Node) -> bool:
        """Round the output of a layer, or of the clip that it ends with, where all readers do so; whether they do.

        Views and clips in between change nothing: clips are monotonic, and rounding twice to a grid is rounding once.
        """
        roundings = set(self._roundings_behind(node))
        if len(roundings) != 1 or (rounding := roundings.pop()) is None:
            return False
        users = list(node.users)
        end = users[0] if len(users) == 1 and users[0].target in _FUSED_CLIPS else node
        integers = self._quantize(end, rounding)
        for user in list(end.users):
            if user is not integers:
                user.replace_input_with(end, self._read(end, rounding, user))
        return True

    def _roundings_behind(self, node: fx.Node) -> Iterator[Rounding | None]:
        """Yield how each reader of a value rounds it, views and clips passed; None for a reader of floats."""
        for user in node.users:
            row = find_operator(user)
            if user.target is self._operators.quantize_per_tensor.default:
                yield user.args[1:]  # type: ignore[misc]
            elif row is not None and row.kind in (Kind.CLIP, Kind.VIEW):
                yield from self._roundings_behind(user)
            else:
                yield None

    def _integer_weight(self, layer: QuantizedLayer, name: str) -> fx.Node:
        """Write the int8 weight of a layer with a scale for each output channel, and its way to float."""
        grid = layer.integers.weight_grid
        axis = int(isinstance(layer, _TRANSPOSED))
        weight = _on_images(layer, layer.integers.weight)
        scales = grid.scale.expand(weight.shape[axis]).contiguous()
        parts = (
            self._constant(f"{name}.weight", weight),
            self._constant(f"{name}.weight_scale", scales),
            self._constant(f"{name}.weight_zero_point", torch.zeros_like(scales, dtype=torch.int64)),
        )
        limits = (axis, *_limits(grid), torch.int8)
        return self._graph.call_function(self._operators.dequantize_per_channel.default, (*parts, *limits))

    def _constant(self, name: str, value: Tensor) -> fx.Node:
        return self._graph.get_attr(place(self._network, f"integers.{name}", value))

    def _call(self, target: Any, args: tuple[Any, ...], like: fx.Node, settings: Any = None) -> fx.Node:
        node = self._graph.call_function(target, args, settings)
        node.meta = dict(like.meta)
        return node


def _rounding(fake: FakeQuantize) -> Rounding:
    """Return a rounding to signed integers: unsigned ones lie 128 lower.

    Raises:
        InputError: it has fewer than 8 bits.
    """
    if fake.scheme.bits != 8:
        raise InputError(f"activations of {fake.scheme.bits} bits can only be simulated; a file needs 8")
    zero_point = fake.zero_point - (0 if fake.scheme.signed else 128)
    return (fake.scale, zero_point, _LOWEST, _HIGHEST, torch.int8)


def _limits(grid: Grid) -> tuple[int, int]:
    return grid.scheme.qmin, grid.scheme.qmax


def _has_integer_kernel(layer: QuantizedLayer) -> bool:
    """Whether XNNPACK multiplies the integers of a layer: transposed convolutions share one scale among groups."""
    return not isinstance(layer, _TRANSPOSED) or layer.groups == 1


def _on_images(layer: QuantizedLayer, weight: Tensor) -> Tensor:
    """Return the weight of a layer as that of one on images: lines are one pixel high."""
    return weight.unsqueeze(2) if isinstance(layer, _LINES) else weight


def _geometry(layer: QuantizedLayer) -> dict[str, Any]:
    names = (
        "stride",
        "padding",
        "dilation",
        "groups",
        *(("output_padding",) if isinstance(layer, _TRANSPOSED) else ()),
    )
    settings = {name: getattr(layer, name) for name in names if hasattr(layer, name)}
    if not isinstance(layer, _LINES):
        return settings
    still = {"stride": 1, "padding": 0, "dilation": 1, "output_padding": 0}
    return {
        name: (still[name], *value) if name in still and not isinstance(value, str) else value
        for name, value in settings.items()
    }
