"""Accuracy during a training, exact over any number of processes."""

from collections.abc import Callable

import torch
from torch import nn

from repquant.data.loading import Loader
from repquant.train.distributed import ONE, Ranks


@torch.inference_mode()
def top1(
    model: nn.Module,
    loader: Loader,
    device: torch.device,
    ranks: Ranks = ONE,
    is_stopping: Callable[[], bool] = lambda: False,
) -> float | None:
    """Return the share of labeled images in percent whose largest logit is the label's; leaves `model` in eval mode.

    Args:
        model: images to logits.
        loader: this rank's images; no image is part of two ranks.
        device: where the model is.
        ranks: the images of all count. Collective.
        is_stopping: asked after each batch; None is returned when it says so in any rank.
    """
    model.eval()
    ranks.share_buffers(model)
    counts = torch.zeros(3, dtype=torch.float64, device=device)  # hits, images, stops
    for batch in loader:
        assert batch.labels is not None
        logits = model(batch.images.to(device))
        counts[0] += (logits.argmax(dim=1) == batch.labels.to(device)).sum()
        counts[1] += len(batch.images)
        if is_stopping():
            counts[2] += 1
            break
    hits, images, stops = ranks.sum(counts).tolist()
    return None if stops else 100 * hits / images
