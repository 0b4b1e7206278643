"""What a layer reads and gives at sampled output positions, so that it is a matrix product there."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repquant.graph.grouping import TransposedConvolution
from repquant.numerics.patches import Geometry, outputs_at, patches_at

Convolution = nn.Conv1d | nn.Conv2d


def maps(x: Tensor, layer: nn.Module) -> Tensor:
    """Return an input or output of `layer` as (N, C, places)."""
    if isinstance(layer, nn.Linear):
        return x.reshape(len(x), -1, x.shape[-1]).transpose(1, 2)
    return x.flatten(2)


def inputs_at(layer: nn.Module, x: Tensor, positions: Tensor) -> Tensor:
    """Return the inputs (N*P, groups, K) that the outputs at positions (N, P) are computed from.

    Those of a transposed convolution are the values (N*P, groups, I/groups) at positions of the input.
    """
    if isinstance(layer, nn.Linear):
        return outputs_at(maps(x, layer), positions).unsqueeze(1)
    groups = groups_of(layer)
    if isinstance(layer, TransposedConvolution):
        rows = outputs_at(maps(x, layer), positions)
        return rows.reshape(len(rows), groups, -1)
    assert isinstance(layer, Convolution)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    if isinstance(layer, nn.Conv1d):
        padded = padded.unsqueeze(2)
    geometry = Geometry(
        padding=(0, 0),
        **{name: _pair(getattr(layer, name + suffix)) for name, suffix in _GEOMETRY},
    )
    rows = patches_at(padded, geometry, positions)
    return rows.reshape(len(rows), groups, -1)


def outputs_of(layer: nn.Module, inputs: Tensor) -> Tensor:
    """Return the outputs (R, O), without bias, for `inputs_at` (R, groups, K); not of a transposed convolution."""
    weight, _ = parameters_of(layer)
    kernels = weight.reshape(inputs.shape[1], -1, inputs.shape[2])
    return torch.einsum("rgk,gok->rgo", inputs, kernels).flatten(1)


def groups_of(layer: nn.Module) -> int:
    """Return the number of groups; 1 for a linear layer."""
    return layer.groups if isinstance(layer, Convolution | TransposedConvolution) else 1


def parameters_of(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias of a layer."""
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    assert bias is None or isinstance(bias, Tensor)
    return weight, bias


def kernel_rows(layer: nn.Module, groups: int) -> list[Tensor]:
    """Return the weight as matrices (rows, K), one for each group, that multiply `inputs_at`.

    A row is an output channel; of a transposed convolution an output channel at one place of the kernel.
    """
    weight, _ = parameters_of(layer)
    if isinstance(layer, TransposedConvolution):
        return [part.flatten(1).T for part in weight.chunk(groups)]
    return list(weight.flatten(1).chunk(groups))


def of_rows(layer: nn.Module, values: Tensor, groups: int) -> list[Tensor]:
    """Return what each of the `kernel_rows` has, (rows,) for each group, of values for each scale of the weight."""
    weight, _ = parameters_of(layer)
    if isinstance(layer, TransposedConvolution):
        return [values.expand(weight.shape[1]).repeat_interleave(weight[0, 0].numel())] * groups
    return list(values.expand(len(weight)).chunk(groups))


def sums_of_rows(layer: nn.Module, rows: list[Tensor], shape: torch.Size) -> Tensor:
    """Return the sums over the `kernel_rows` that share a scale, for scales of a shape () or (C,)."""
    values = torch.stack(rows)
    if not shape:
        return values.sum()
    if isinstance(layer, TransposedConvolution):
        return values.sum(0).reshape(*shape, -1).sum(1)
    return values.flatten()


def weight_of_rows(layer: nn.Module, rows: list[Tensor]) -> Tensor:
    """Return the weight that has these `kernel_rows`."""
    weight, _ = parameters_of(layer)
    if isinstance(layer, TransposedConvolution):
        return torch.cat([part.T for part in rows]).reshape(weight.shape)
    return torch.cat(rows).reshape(weight.shape)


_GEOMETRY = (("kernel", "_size"), ("stride", ""), ("dilation", ""))


def _pair(size: tuple[Any, ...]) -> tuple[int, int]:
    return (1, size[0]) if len(size) == 1 else (size[0], size[1])
