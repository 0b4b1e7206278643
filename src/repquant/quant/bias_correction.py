"""Empirical bias correction: give every channel of a quantized layer the mean that it has in float.

Rounded weights shift the mean of a layer's output, because its inputs (after a ReLU) have means that are not zero. The
shift is measured and subtracted from the bias (Nagel et al., "Data-Free Quantization through Weight Equalization and
Bias Correction", ICCV 2019; the empirical form, since the branches of a re-parameterized block are correlated).
"""

import copy
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import TypeVar

import torch
from torch import Tensor, nn

from repquant.quant.convert import layer_pairs
from repquant.quant.sharing import refuse_second_use, refuse_shared_parameters

ModuleT = TypeVar("ModuleT", bound=nn.Module)
_REMEDY = "leave biases as they are: give no images, or learn the rounding"


@torch.inference_mode()
def correct_biases(
    model: ModuleT,
    quantized: nn.Module,
    batches: Iterable[Tensor],
    on_batch: Callable[[int], None] = lambda _: None,
) -> ModuleT:
    """Return a copy of the float model whose biases make up for the mean error of its quantized form.

    Quantizing the copy on the same grids gives the corrected model. Each batch runs through both models; a quantized
    layer's output is shifted to the float mean before it goes on, so that a layer is corrected for its own error, with
    the layers before it corrected already, in one pass. Layers without bias stay as they are.

    Args:
        model: deploy model in float; it is not changed.
        quantized: the same model after `quantize_model`.
        batches: images (N, 3, H, W) each.
        on_batch: called with the number of images after each batch.

    Raises:
        InputError: a layer that is used more than once, or that shares a parameter with another one.
    """
    layers = {name: pair for name, pair in layer_pairs(model, quantized).items() if pair[1].bias is not None}
    refuse_shared_parameters({name: layer for name, (layer, _) in layers.items()}, _REMEDY)
    float_means: dict[str, Tensor] = {}
    shifts = {name: torch.zeros(len(layer.weight), dtype=torch.float64) for name, (_, layer) in layers.items()}
    images = 0
    with ExitStack() as hooks:
        for name, (float_layer, layer) in layers.items():
            hooks.callback(float_layer.register_forward_hook(_record_mean(name, float_means)).remove)
            hooks.callback(layer.register_forward_hook(_shift_mean(name, float_means, shifts)).remove)
        for batch in batches:
            model(batch)
            quantized(batch)
            images += len(batch)
            on_batch(len(batch))
    corrected = copy.deepcopy(model)
    for name, shift in shifts.items():
        bias = corrected.get_submodule(name).bias
        assert isinstance(bias, Tensor)
        bias += (shift / max(images, 1)).to(bias.dtype)
    return corrected


Hook = Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor | None]


def _record_mean(name: str, means: dict[str, Tensor]) -> Hook:
    def record(_layer: nn.Module, _inputs: tuple[Tensor, ...], y: Tensor) -> None:
        refuse_second_use(name, means, _REMEDY)
        means[name] = _channel_mean(y)

    return record


def _shift_mean(name: str, means: dict[str, Tensor], shifts: dict[str, Tensor]) -> Hook:
    def shift(_layer: nn.Module, _inputs: tuple[Tensor, ...], y: Tensor) -> Tensor:
        difference = means.pop(name) - _channel_mean(y)
        shifts[name] += len(y) * difference
        return y + difference.to(y.dtype).reshape(-1, *[1] * (y.dim() - 2))

    return shift


def _channel_mean(y: Tensor) -> Tensor:
    """(N, C, ...) -> (C,) in float64."""
    return y.transpose(0, 1).flatten(1).mean(1, dtype=torch.float64)
