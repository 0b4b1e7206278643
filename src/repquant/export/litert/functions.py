"""Functions of each value, and of rows: in float, between DEQUANTIZE and QUANTIZE where the network is rounded.

LiteRT has some of them in int8, with tables or polynomials of its own: other integers than the simulation's.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import fx

from repquant.export.litert.clips import Clip, clipped
from repquant.export.litert.scope import Scope, argument
from repquant.export.litert.values import Value, Writer
from repquant.export.refusals import unwritable
from repquant.graph.operators import aten


def _unary(kind: str, options: str = "", **fields: Any) -> Callable[[Writer, Value], Value]:
    def write(writer: Writer, value: Value) -> Value:
        return writer.emit(kind, [value], writer.like(kind.lower(), value), options, **fields)

    return write


def _with(writer: Writer, kind: str, value: Value, other: Value | NDArray[np.float32] | float) -> Value:
    """Write a sum, difference or product with a value or constant of as many axes, or with a number."""
    if not isinstance(other, Value):
        array = np.asarray(other, np.float32)
        other = writer.constant("constant", array.reshape(array.shape or (1,) * len(value.sizes)))
    options = {"ADD": "AddOptions", "SUB": "SubOptions", "MUL": "MulOptions"}[kind]
    return writer.emit(kind, [value, other], writer.like(kind.lower(), value), options, fusedActivationFunction=0)


_abs, _neg, _exp, _log = _unary("ABS"), _unary("NEG", "NegOptions"), _unary("EXP", "ExpOptions"), _unary("LOG")
_logistic, _tanh, _relu = _unary("LOGISTIC"), _unary("TANH"), _unary("RELU")


def _silu(writer: Writer, value: Value) -> Value:
    return _with(writer, "MUL", value, _logistic(writer, value))


def _hardsigmoid(writer: Writer, value: Value) -> Value:
    return _with(writer, "MUL", clipped(writer, _with(writer, "ADD", value, 3.0), Clip(0, 6)), 1 / 6)


def _softplus(writer: Writer, value: Value) -> Value:
    """log(1 + e^x) = max(x, 0) + log(1 + e^-|x|), which does not overflow."""
    tail = _log(writer, _with(writer, "ADD", _exp(writer, _neg(writer, _abs(writer, value))), 1.0))
    return _with(writer, "ADD", _relu(writer, value), tail)


def _mish(writer: Writer, value: Value) -> Value:
    return _with(writer, "MUL", value, _tanh(writer, _softplus(writer, value)))


_PLAIN: Mapping[Any, Callable[[Writer, Value], Value]] = {
    aten.silu.default: _silu,
    aten.hardswish.default: _unary("HARD_SWISH", "HardSwishOptions"),
    aten.hardsigmoid.default: _hardsigmoid,
    aten.sigmoid.default: _logistic,
    aten.tanh.default: _tanh,
    aten.mish.default: _mish,
    aten.neg.default: _neg,
    aten.exp.default: _exp,
    aten.sin.default: _unary("SIN"),
    aten.cos.default: _unary("COS", "CosOptions"),
    aten.sqrt.default: _unary("SQRT"),
    aten.abs.default: _abs,
}


def write_function(scope: Scope, node: fx.Node) -> Value:
    """Write a function of each value without parameters."""
    return _PLAIN[node.target](scope.writer, scope.writer.as_float(scope.operands(node)[0]))


def write_with_parameters(scope: Scope, node: fx.Node) -> Value:
    """Write a function that has parameters."""
    writer = scope.writer
    value = writer.as_float(scope.operands(node)[0])
    result = writer.like(node.name, value)
    if node.target is aten.leaky_relu.default:
        return writer.emit("LEAKY_RELU", [value], result, "LeakyReluOptions", alpha=argument(node, "negative_slope"))
    if node.target is aten.gelu.default:
        is_tanh = argument(node, "approximate") == "tanh"
        return writer.emit("GELU", [value], result, "GeluOptions", approximate=is_tanh)
    if node.target is aten.prelu.default:
        slopes = scope.constant(argument(node, "weight")).astype(np.float32).reshape(-1)
        shape = [slopes.size if axis == 1 else 1 for axis in value.order if axis != 0]
        return writer.emit("PRELU", [value, writer.constant("slopes", slopes.reshape(shape))], result)
    if node.target is aten.elu.default:
        if (argument(node, "alpha"), argument(node, "scale"), argument(node, "input_scale")) != (1, 1, 1):
            raise unwritable(node, "an ELU with factors has no form in files for litert")
        return writer.emit("ELU", [value], result)
    if node.target is aten.softplus.default:
        if argument(node, "beta") != 1:
            raise unwritable(node, "a softplus with a factor has no form in files for litert")
        return _softplus(writer, value)
    raise AssertionError(node.target)


def write_softmax(scope: Scope, node: fx.Node) -> Value:
    """Write a softmax over the last axis."""
    value = scope.writer.as_float(scope.operands(node)[0])
    rank = len(value.sizes)
    if argument(node, "dim") % rank != rank - 1:
        raise unwritable(node, "a softmax over another axis than the last has no form in files for litert")
    value = scope.writer.plain(value)
    return scope.writer.emit("SOFTMAX", [value], scope.writer.like(node.name, value), "SoftmaxOptions", beta=1.0)


def write_layer_norm(scope: Scope, node: fx.Node) -> Value:
    """Write a normalization of the last axis."""
    value = scope.writer.plain(scope.writer.as_float(scope.operands(node)[0]))
    if len(argument(node, "normalized_shape")) != 1:
        raise unwritable(node, "a normalization of more than one axis is not written to files for litert")
    normal = _normalized(scope.writer, value, argument(node, "eps"))
    return _affine(scope, node, normal, axis=-1)


def write_group_norm(scope: Scope, node: fx.Node) -> Value:
    """Write a normalization of groups of channels over the image."""
    value = scope.writer.as_float(scope.operands(node)[0])
    groups = argument(node, "num_groups")
    size = int(np.prod(value.sizes[1:])) // groups
    rows = scope.writer.reshaped(value, (value.sizes[0], groups, size), value.free)
    normal = _normalized(scope.writer, rows, argument(node, "eps"))
    return _affine(scope, node, scope.writer.reshaped(normal, value.sizes, value.free), axis=1)


def _normalized(writer: Writer, value: Value, eps: float) -> Value:
    """Return (x - mean) / sqrt(variance + eps) over the last axis."""

    def mean(of: Value) -> Value:
        result = writer.new("mean", (*of.sizes[:-1], 1), of.order, of.free)
        return writer.emit("MEAN", [of, writer.indices([len(of.sizes) - 1])], result, "ReducerOptions", keepDims=True)

    centered = _with(writer, "SUB", value, mean(value))
    variance = mean(_with(writer, "MUL", centered, centered))
    return _with(writer, "MUL", centered, _unary("RSQRT")(writer, _with(writer, "ADD", variance, eps)))


def _affine(scope: Scope, node: fx.Node, value: Value, axis: int) -> Value:
    """Return a normal value times the weight plus the bias of its channels."""
    for kind, name in (("MUL", "weight"), ("ADD", "bias")):
        if argument(node, name) is not None:
            shape = [1] * len(value.sizes)
            shape[axis] = -1
            value = _with(scope.writer, kind, value, scope.constant(argument(node, name)).reshape(shape))
    return value


PLAIN = tuple(_PLAIN)
WITH_PARAMETERS = (
    aten.leaky_relu.default,
    aten.gelu.default,
    aten.prelu.default,
    aten.elu.default,
    aten.softplus.default,
)
