"""Normalizations and layers without a window."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from repquant.errors import InputError
from repquant.reader.values import MaybeKnown


def _batch_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
) -> Tensor:
    if training_mode:
        raise InputError("it is in training mode; export the network in evaluation mode")
    return F.batch_norm(x, mean, variance, scale, bias, eps=epsilon)


def _dropout(x: Tensor, ratio: MaybeKnown = None, training_mode: MaybeKnown = None, *, seed: int = 0) -> Tensor:
    if training_mode is not None and training_mode.item():
        raise InputError("it is in training mode; export the network in evaluation mode")
    return x


def _group_normalization(
    x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    repeats = x.shape[1] // scale.numel()  # before opset 21 they are those of the groups
    weight, shift = (each.repeat_interleave(repeats) if repeats > 1 else each for each in (scale, bias))
    return F.group_norm(x, num_groups, weight, shift, epsilon)


def _instance_normalization(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    return F.instance_norm(x, weight=scale, bias=bias, eps=epsilon)


def _layer_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> Tensor:
    shape = list(x.shape[axis:])
    return F.layer_norm(x, shape, scale.expand(shape), None if bias is None else bias.expand(shape), epsilon)


def _gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,  # noqa: N803  # the names are those of ONNX
    transB: int = 0,  # noqa: N803
) -> Tensor:
    a = a.t() if transA else a
    b = b if alpha == 1 else b * alpha
    c = c if c is None or beta == 1 else c * beta
    if c is not None and c.ndim == 2 and c.shape[0] == 1:
        c = c[0]
    if c is not None and (c.ndim != 1 or c.shape[0] != b.shape[0 if transB else 1]):
        return torch.matmul(a, b.t() if transB else b) + c
    if transB:
        return F.linear(a, b, c)
    return torch.matmul(a, b) if c is None else torch.addmm(c, a, b)


def _local_response(x: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> Tensor:
    if size % 2 == 0:
        raise InputError(f"its size is {size}; allowed are odd ones: torch has an even window one channel further on")
    return F.local_response_norm(x, size, alpha, beta, bias)


NORMALIZATIONS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "BatchNormalization": _batch_normalization,
        "Dropout": _dropout,
        "Gemm": _gemm,
        "GroupNormalization": _group_normalization,
        "InstanceNormalization": _instance_normalization,
        "LRN": _local_response,
        "Linear": lambda x, weight, bias: F.linear(x, weight, bias),  # made by `fusions`
        "LayerNormalization": _layer_normalization,
    }
)
