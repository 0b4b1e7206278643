"""Operators on each value, sums and products."""

from collections.abc import Callable, Mapping
from functools import reduce
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from onnx import TensorProto
from torch import Tensor
from torch.nn import functional as F

from repquant.errors import InputError
from repquant.reader.values import Known, MaybeKnown, integers

_DTYPES: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.BOOL: torch.bool,
    TensorProto.UINT8: torch.uint8,
    TensorProto.INT8: torch.int8,
}


def _clip(x: Tensor, low: MaybeKnown = None, high: MaybeKnown = None) -> Tensor:
    limits = [None if each is None else each.item() for each in (low, high)]
    if limits == [None, None]:
        return x
    return F.relu(x) if limits == [0, None] else torch.clamp(x, *limits)


def _hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return F.hardsigmoid(x)
    return torch.clamp(alpha * x + beta, 0.0, 1.0)


def _prelu(x: Tensor, slope: Tensor) -> Tensor:
    is_channelwise = slope.ndim == x.ndim - 1 and slope.shape[0] == slope.numel() == x.shape[1]
    if slope.numel() == 1 or is_channelwise:
        return F.prelu(x, slope.reshape(-1))
    return torch.where(x < 0, x * slope, x)


def _cast(x: Tensor, *, to: int, saturate: int = 1, round_mode: str = "up") -> Tensor:
    if to not in _DTYPES:
        raise InputError(f"it casts to {TensorProto.DataType.Name(to)}; export the file with float32 alone")
    return x.to(_DTYPES[to])


def _divide(x: Tensor, y: Tensor) -> Tensor:
    return torch.div(x, y) if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


def _mod(x: Tensor, y: Tensor, *, fmod: int = 0) -> Tensor:
    return torch.fmod(x, y) if fmod else torch.remainder(x, y)


def _gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    return F.gelu(x, approximate=approximate)


def _reduced(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def operator(x: Tensor, axes: MaybeKnown = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
        dims = [] if axes is None else integers(np.asarray(axes))  # an attribute of older opsets is a list
        if not dims and noop_with_empty_axes:
            return x
        return function(x, dims or list(range(x.ndim)), keepdim=bool(keepdims))

    return operator


def _arg_max(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    if select_last_index:
        raise InputError("it takes the last of equal values; only the first can be taken")
    return torch.argmax(x, axis, keepdim=bool(keepdims))


def _top_k(x: Tensor, k: Known, *, axis: int = -1, largest: int = 1, sorted: int = 1) -> tuple[Tensor, ...]:
    return tuple(torch.topk(x, integers(k)[0], axis, bool(largest), bool(sorted)))


def _cumsum(x: Tensor, axis: Known, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    if exclusive or reverse:
        raise InputError("it sums in reverse or without the value itself, which is not supported")
    return torch.cumsum(x, integers(axis)[0])


ARITHMETIC: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "Abs": lambda x: torch.abs(x),
        "Add": lambda x, y: torch.add(x, y),
        "And": lambda x, y: torch.logical_and(x, y),
        "ArgMax": _arg_max,
        "Cast": _cast,
        "CastLike": lambda x, like, *, saturate=1: x.to(like.dtype),
        "Ceil": lambda x: torch.ceil(x),
        "Celu": lambda x, *, alpha=1.0: F.celu(x, alpha),
        "Clip": _clip,
        "Cos": lambda x: torch.cos(x),
        "CumSum": _cumsum,
        "Div": _divide,
        "Einsum": lambda *inputs, equation: torch.einsum(equation, *inputs),
        "Elu": lambda x, *, alpha=1.0: F.elu(x, alpha),
        "Equal": lambda x, y: torch.eq(x, y),
        "Erf": lambda x: torch.erf(x),
        "Exp": lambda x: torch.exp(x),
        "Floor": lambda x: torch.floor(x),
        "Gelu": _gelu,
        "Greater": lambda x, y: torch.gt(x, y),
        "GreaterOrEqual": lambda x, y: torch.ge(x, y),
        "HardSigmoid": _hard_sigmoid,
        "HardSwish": lambda x: F.hardswish(x),
        "Identity": lambda x: x,
        "LeakyRelu": lambda x, *, alpha=0.01: F.leaky_relu(x, alpha),
        "Less": lambda x, y: torch.lt(x, y),
        "LessOrEqual": lambda x, y: torch.le(x, y),
        "Log": lambda x: torch.log(x),
        "LogSoftmax": lambda x, *, axis=-1: torch.log_softmax(x, axis),
        "MatMul": lambda x, y: torch.matmul(x, y),
        "Max": lambda *inputs: reduce(torch.maximum, inputs),
        "Min": lambda *inputs: reduce(torch.minimum, inputs),
        "Mish": lambda x: F.mish(x),
        "Mod": _mod,
        "Mul": lambda x, y: torch.mul(x, y),
        "Neg": lambda x: torch.neg(x),
        "Not": lambda x: torch.logical_not(x),
        "Or": lambda x, y: torch.logical_or(x, y),
        "PRelu": _prelu,
        "Pow": lambda x, y: torch.pow(x, y),
        "Reciprocal": lambda x: torch.reciprocal(x),
        "ReduceL2": _reduced(lambda x, dims, keepdim: torch.linalg.vector_norm(x, 2, dims, keepdim)),
        "ReduceMax": _reduced(torch.amax),
        "ReduceMean": _reduced(torch.mean),
        "ReduceMin": _reduced(torch.amin),
        "ReduceSum": _reduced(torch.sum),
        "Relu": lambda x: F.relu(x),
        "Round": lambda x: torch.round(x),
        "Selu": lambda x: F.selu(x),
        "Sigmoid": lambda x: torch.sigmoid(x),
        "Sign": lambda x: torch.sign(x),
        "Sin": lambda x: torch.sin(x),
        "Softmax": lambda x, *, axis=-1: torch.softmax(x, axis),
        "Softplus": lambda x: F.softplus(x),
        "Softsign": lambda x: F.softsign(x),
        "Sqrt": lambda x: torch.sqrt(x),
        "Sub": lambda x, y: torch.sub(x, y),
        "Sum": lambda *inputs: reduce(torch.add, inputs),
        "Swish": lambda x: F.silu(x),  # made by `fusions`
        "Tanh": lambda x: torch.tanh(x),
        "TopK": _top_k,
        "Where": lambda condition, x, y: torch.where(condition, x, y),
    }
)
