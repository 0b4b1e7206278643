"""A network as a .tflite file: node by node, in int8 where everyone reads a value on one grid, else in float."""

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, get_args

from torch import fx
from torch.utils import _pytree as pytree

from repquant.atomic import replace_file
from repquant.choices import EndType
from repquant.errors import InputError
from repquant.export.file_batch import file_batch
from repquant.export.litert import arithmetic, functions, pooling, shapes
from repquant.export.litert.clips import NO_CLIP, Clip, clip_of, clipped
from repquant.export.litert.flat_file import Named, Quantization
from repquant.export.litert.layers import write_layer
from repquant.export.litert.scope import Scope, quantization
from repquant.export.litert.values import CHANNELS_LAST, Value
from repquant.export.refusals import unwritable
from repquant.graph.interface import captured_of, input_names, output_names
from repquant.graph.operators import KEEPS_GRID, Kind, aten, find_operator, holds_floats
from repquant.simulation.layers import FakeQuantize, QuantizedLayer, QuantizedMatmul

END_TYPES: tuple[EndType, ...] = get_args(EndType)
"""What a file takes or gives: floats, or integers on the grid that is written beside them."""

Moving = Callable[[Scope, fx.Node], shapes.Result]
Computing = Callable[[Scope, fx.Node, Clip, Quantization | None], Value]

_MOVING: Mapping[Any, Moving] = {
    **dict.fromkeys(
        (
            aten.view.default,
            aten.reshape.default,
            aten._unsafe_view.default,
            aten.flatten.using_ints,
            aten.unflatten.int,
            aten.squeeze.default,
            aten.squeeze.dim,
            aten.squeeze.dims,
            aten.unsqueeze.default,
        ),
        shapes.view,
    ),
    operator.getitem: shapes.item,
    **dict.fromkeys((aten.permute.default, aten.transpose.int, aten.t.default), shapes.permute),
    **dict.fromkeys((aten.slice.Tensor, aten.narrow.default, aten.select.int), shapes.strided),
    aten.index_select.default: shapes.index_select,
    aten.flip.default: shapes.flip,
    aten.roll.default: shapes.roll,
    **dict.fromkeys(
        (aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default, aten.unbind.int), shapes.split
    ),
    **dict.fromkeys((aten.expand.default, aten.repeat.default), shapes.expand),
    **dict.fromkeys((aten.pad.default, aten.constant_pad_nd.default), shapes.pad_with),
    **dict.fromkeys((aten.cat.default, aten.stack.default), shapes.join),
    **dict.fromkeys(
        (aten.pixel_shuffle.default, aten.pixel_unshuffle.default, aten.channel_shuffle.default), shapes.shuffle
    ),
    **dict.fromkeys((aten.max_pool1d.default, aten.max_pool2d.default), pooling.max_pool),
    aten.adaptive_max_pool2d.default: pooling.adaptive_maximum,
    aten.amax.default: pooling.maximum,
    **dict.fromkeys(
        (
            aten.upsample_nearest1d.vec,
            aten.upsample_nearest2d.vec,
            aten.upsample_nearest2d.default,
            aten._upsample_nearest_exact2d.vec,
        ),
        pooling.nearest,
    ),
    **dict.fromkeys(functions.PLAIN, functions.write_function),
    **dict.fromkeys(functions.WITH_PARAMETERS, functions.write_with_parameters),
    aten.softmax.int: functions.write_softmax,
    aten.layer_norm.default: functions.write_layer_norm,
    aten.group_norm.default: functions.write_group_norm,
    **dict.fromkeys((aten.matmul.default, aten.bmm.default), arithmetic.write_matmul),
}
_COMPUTING: Mapping[Any, Computing] = {
    **dict.fromkeys(arithmetic.BINARY, arithmetic.write_binary),
    **dict.fromkeys((aten.avg_pool1d.default, aten.avg_pool2d.default), pooling.average_pool),
    **dict.fromkeys((aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default), pooling.adaptive_average),
    aten.mean.dim: pooling.mean,
    **dict.fromkeys((aten.upsample_bilinear2d.vec, aten.upsample_bilinear2d.default), pooling.bilinear),
}
_FUSING = (*arithmetic.BINARY,)


def export_litert(
    graph: fx.GraphModule,
    path: Path,
    *,
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
    batch: int | None = None,
    input_type: EndType = "float32",
    output_type: EndType = "float32",
) -> int:
    """Write a captured network to `path` for LiteRT, and return its size in bytes.

    Images are channels last in the file, (N, H, W, C), inputs and outputs of four axes included.

    Args:
        graph: from `capture`, or simulated with signed or unsigned activations of 8 bits, on the CPU.
        path: file to write; it appears only when it is complete.
        inputs: names of the inputs, in their order; those of the module's arguments by default.
        outputs: names of the outputs; the keys of a returned dict by default, else `output`.
        batch: number of images that the file takes; None for any, where the capture left that open.
        input_type: what the file takes.
        output_type: what the file gives.

    Raises:
        InputError: an operator that the file can't hold, a batch that is none or not that of the capture, integers at
            an end that is not on a grid, or a folder that can't be written.
    """
    content = litert_bytes(
        graph,
        list(inputs) or input_names(graph),
        list(outputs) or output_names(graph),
        batch=batch,
        input_type=input_type,
        output_type=output_type,
    )
    with replace_file(path) as temporary:
        temporary.write_bytes(content)
    return len(content)


def litert_bytes(
    graph: fx.GraphModule,
    inputs: Sequence[str],
    outputs: Sequence[str],
    *,
    batch: int | None = None,
    input_type: EndType = "float32",
    output_type: EndType = "float32",
) -> bytes:
    """Return the file of a network; see `export_litert`."""
    for what, kind in (("input", input_type), ("output", output_type)):
        if kind not in END_TYPES:
            raise InputError(f"{what} type {kind!r} was given; allowed are {', '.join(END_TYPES)}")
    scope = Scope(
        graph=graph, batch=file_batch(graph, batch), is_free=batch is None and captured_of(graph).dynamic_batch
    )
    wanted = _wanted(graph)
    names, taken = iter(inputs), []
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            taken.append(_write_input(scope, node, next(names), input_type, wanted(node)))
        elif node.op != "output" and node not in scope.values:
            _write(scope, node, wanted)
    results = [node for node in pytree.tree_leaves(graph.graph.output_node().args) if isinstance(node, fx.Node)]
    returned = [_write_output(scope, node, name, output_type) for node, name in zip(results, outputs, strict=True)]
    return scope.writer.file.content(taken, returned)


def _wanted(graph: fx.GraphModule) -> Callable[[fx.Node], Quantization | None]:
    """Return a function that gives the grid on which everyone reads a node's value, or None."""

    def asked(user: fx.Node, node: fx.Node) -> Quantization | None:
        if user.op == "call_module":
            module = graph.get_submodule(str(user.target))
            if isinstance(module, FakeQuantize):
                return quantization(module)
            if isinstance(module, QuantizedLayer):
                return quantization(module.input)
            if isinstance(module, QuantizedMatmul):
                left, right = quantization(module.left), quantization(module.right)
                return left if user.args[0] is node and (user.args[1] is not node or left == right) else right
        row = find_operator(user)
        return wanted(user) if row is not None and row.kind in KEEPS_GRID else None

    @cache
    def wanted(node: fx.Node) -> Quantization | None:
        grids = {asked(user, node) for user in node.users if user.op == "output" or holds_floats(user)}
        return grids.pop() if len(grids) == 1 else None

    return wanted


def _write(scope: Scope, node: fx.Node, wanted: Callable[[fx.Node], Quantization | None]) -> None:
    """Write a node, and the clip behind it where nobody else reads it."""
    if node.op == "get_attr" or not holds_floats(node):
        return
    if any(isinstance(size, int) and size == 0 for size in getattr(node.meta["val"], "shape", ())):
        raise unwritable(node, "an empty value is not written to files for litert")
    module = scope.graph.get_submodule(str(node.target)) if node.op == "call_module" else None
    if isinstance(module, FakeQuantize):
        scope.values[node] = scope.writer.on_grid(scope.value(node.args[0]), quantization(module))
        return
    if isinstance(module, QuantizedMatmul):
        scope.values[node] = arithmetic.write_matmul(scope, node)
        return
    if node.target in _MOVING:
        scope.values[node] = _MOVING[node.target](scope, node)
        return
    row = find_operator(node)
    if row is not None and row.kind is Kind.CLIP:
        value = scope.operands(node)[0]
        scope.values[node] = clipped(scope.writer, scope.writer.as_float(value), clip_of(node))
        return
    tail = _fused_clip(node) if module is not None or node.target in _FUSING else None
    clip, grid = (NO_CLIP, wanted(node)) if tail is None else (clip_of(tail), wanted(tail))
    if module is not None:
        value = write_layer(scope, node, clip, grid)
    elif node.target in _COMPUTING:
        value = _COMPUTING[node.target](scope, node, clip, grid)
    else:
        raise unwritable(node, "it is not among the operators that are written to files for litert")
    scope.values[node] = value
    if tail is not None:
        scope.values[tail] = value


def _fused_clip(node: fx.Node) -> fx.Node | None:
    """Return the clip that alone reads a node's value."""
    users = [user for user in node.users if user.op == "output" or holds_floats(user)]
    row = find_operator(users[0]) if len(users) == 1 else None
    return users[0] if row is not None and row.kind is Kind.CLIP else None


def _write_input(scope: Scope, node: fx.Node, name: str, kind: EndType, grid: Quantization | None) -> Named:
    if not holds_floats(node):
        raise InputError(f"input {name} holds {node.meta['val'].dtype}; a .tflite file is written for inputs of floats")
    sizes, free = scope.form(node.meta["val"])
    order = CHANNELS_LAST if len(sizes) == 4 else tuple(range(len(sizes)))
    if kind == "float32":
        grid = None
    elif grid is None:
        raise InputError(f"input {name} is read in float, so that the file can't take {kind}; leave it at float32")
    value = scope.writer.new(name, sizes, order, free, grid, kind)
    scope.values[node] = value
    if kind == "uint8":
        assert grid is not None
        shifted = scope.writer.like(f"{name}_int8", value, grid)
        scope.values[node] = scope.writer.emit("QUANTIZE", [value], shifted, "QuantizeOptions", 2)
    return Named(name, value.tensor, order)


def _write_output(scope: Scope, node: fx.Node, name: str, kind: EndType) -> Named:
    if node not in scope.values:
        raise unwritable(node, "it gives no floats")
    value = scope.value(node)
    if value.order != CHANNELS_LAST:
        value = scope.writer.plain(value)
    if kind == "float32":
        value = scope.writer.as_float(value)
    elif value.grid is None:
        raise InputError(f"output {name} is computed in float, so that the file can't give {kind}; leave it at float32")
    elif kind == "uint8":
        shifted = scope.writer.new(name, value.sizes, value.order, value.free, value.grid, kind)
        value = scope.writer.emit("QUANTIZE", [value], shifted, "QuantizeOptions", 2)
    return Named(name, value.tensor, value.order)
