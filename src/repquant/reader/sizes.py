"""Operators on numbers that are known before anything is computed, sizes above all."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TypeProto, helper
from onnx.reference import ReferenceEvaluator

from repquant.errors import InputError
from repquant.reader.values import has_symbols, integers, plain

Numbers = NDArray[Any]

MOST = 1 << 16
"""Elements beyond which an array is data: it is computed as a tensor."""


def can_compute(node: NodeProto, inputs: Sequence[Numbers | None]) -> bool:
    """Whether `compute` has a node for such numbers."""
    return node.op_type in _WITH_SYMBOLS or not any(each is not None and has_symbols(each) for each in inputs)


def compute(
    node: NodeProto, opset: int, inputs: Sequence[Numbers | None], attributes: Mapping[str, Any]
) -> list[Numbers]:
    """Return what a node gives for numbers: by onnx's own reference, and where symbols are among them by the table.

    Raises:
        InputError: the operator is not in the table, and symbols are among its inputs.
    """
    if any(each is not None and has_symbols(each) for each in inputs):
        operator = _WITH_SYMBOLS.get(node.op_type)
        if operator is None:
            raise InputError("it computes with the size of the batch, in a way that can't be followed")
        return [plain(np.asarray(operator(*inputs, **attributes), dtype=object))]
    names = {name: value for name, value in zip(node.input, inputs, strict=True) if name}
    graph = helper.make_graph(
        [node],
        "node",
        [helper.make_value_info(name, TypeProto()) for name in names],
        [helper.make_value_info(name, TypeProto()) for name in node.output],
    )
    results = ReferenceEvaluator(graph, opsets={"": opset}).run(None, names)
    return [np.asarray(each) for each in results]


def _slice(
    data: Numbers, starts: Numbers, ends: Numbers, axes: Numbers | None = None, steps: Numbers | None = None
) -> Numbers:
    where = [slice(None)] * data.ndim
    chosen = range(len(starts)) if axes is None else integers(axes)
    strides = [1] * len(starts) if steps is None else integers(steps)
    for axis, start, end, step in zip(chosen, integers(starts), integers(ends), strides, strict=True):
        where[axis] = slice(start, None if step < 0 and end < -data.shape[axis] else end, step)
    return data[tuple(where)]


def _squeeze(data: Numbers, axes: Numbers | None = None) -> Numbers:
    return np.squeeze(data, None if axes is None else tuple(integers(axes)))


def _equal(a: Numbers, b: Numbers) -> Numbers:
    return np.asarray(np.frompyfunc(lambda x, y: bool(x == y), 2, 1)(a, b))


_WITH_SYMBOLS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "Add": np.add,
        "Cast": lambda data, **_: data,
        "Concat": lambda *data, axis: np.concatenate(data, axis),
        "Div": np.floor_divide,
        "Equal": _equal,
        "Gather": lambda data, indices, axis=0: np.take(data, indices.astype(np.int64), axis),
        "Identity": lambda data: data,
        "Mul": np.multiply,
        "ReduceProd": lambda data, axes=None, keepdims=1: np.prod(data, keepdims=bool(keepdims)),
        "Reshape": lambda data, shape, **_: data.reshape(integers(shape)),
        "Shape": lambda data: np.asarray(data.shape),
        "Slice": _slice,
        "Squeeze": _squeeze,
        "Sub": np.subtract,
        "Unsqueeze": lambda data, axes: np.expand_dims(data, tuple(integers(axes))),
        "Where": lambda condition, x, y: np.where(condition.astype(bool), x, y),
    }
)
