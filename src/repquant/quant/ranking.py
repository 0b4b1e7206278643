"""Which layers do most harm when they are quantized: the ones to keep in float, if it has to be."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from repquant.errors import InputError
from repquant.models.network import RepVGG
from repquant.numerics.distance import softmax_kl
from repquant.quant.convert import Layer
from repquant.quant.segments import assemble, segments_of, swap_each


@torch.inference_mode()
def rank_layers(
    model: RepVGG,
    quantized: RepVGG,
    batches: Iterable[Tensor],
    on_batch: Callable[[int], None] = lambda _: None,
) -> tuple[str, ...]:
    """Return the names of the quantized layers with weights, those first that change the output most by themselves.

    With p layers a batch costs about p/2 + 1 passes of the float network: `sensitivity.measure_sensitivity` tells more
    and takes twice as many, and half of them simulated. The change is the KL divergence of the softmax.

    Args:
        model: deploy model in float.
        quantized: the same model after `quantize_model`.
        batches: images (N, 3, H, W) each; labels are not needed.
        on_batch: called with the number of images after each batch.

    Raises:
        InputError: no batch came.
    """
    parts = segments_of(model, quantized)
    alternatives = [
        {point.name: assemble(segment, own, {point.name: "both"}) for point in own if isinstance(point.module, Layer)}
        for segment, own in parts
    ]
    harm = {name: 0.0 for alternative in alternatives for name in alternative}
    images = 0
    for batch in batches:
        reference, outputs = swap_each([segment for segment, _ in parts], alternatives, batch)
        for name, logits in outputs.items():
            harm[name] += float(softmax_kl(reference, logits).sum())
        images += len(batch)
        on_batch(len(batch))
    if images == 0:
        raise InputError("there are no images to rank layers with; give at least 1")
    return tuple(sorted(harm, key=lambda name: -harm[name]))
