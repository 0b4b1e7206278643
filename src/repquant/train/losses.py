"""What training minimizes: cross-entropy with smoothed labels, and the custom L2 of RepVGG."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repquant.errors import InputError
from repquant.models.blocks import RepVGGBlock


def classification_loss(logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    """Mean cross-entropy, in float32, of logits (N, K) with labels (N,), or with shares of the classes (N, K).

    The target is 1 - label_smoothing for the label (or as much of its shares), plus label_smoothing / K for every class
    (Szegedy et al., CVPR 2016).
    """
    return F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing)


def custom_l2(model: nn.Module) -> Tensor:
    """Sum `block_custom_l2` over the blocks; times weight_decay / 2 it is added to the loss.

    Raises:
        InputError: the model has no RepVGG block in training form.
    """
    terms = [block_custom_l2(block) for block in model.modules() if isinstance(block, RepVGGBlock)]
    if not terms:
        raise InputError(f"custom L2 needs RepVGG blocks in training form, and {type(model).__name__} has none")
    return torch.stack(terms).sum()


def block_custom_l2(block: RepVGGBlock) -> Tensor:
    """Squared norm of a block's equivalent kernel, with its center put on the scale of the branches' kernels.

    With the batch normalizations' t = gamma / sqrt(running_var + eps) as constants and c the center of a 3x3 kernel,

        sum W3^2 - sum W3[c]^2 + sum (t3 * W3[c] + t1 * W1)^2 / (t3^2 + t1^2)

    The identity branch is left out (`get_custom_L2` in the code of Ding et al., CVPR 2021). A channel whose two gammas
    are 0 contributes nothing at its center; the formula says 0 / 0.
    """
    w3, w1 = block.conv3x3.conv.weight, block.conv1x1.conv.weight
    t3, t1 = _inference_scale(block.conv3x3.bn), _inference_scale(block.conv1x1.bn)
    norm = torch.hypot(t3, t1)
    norm = norm.masked_fill(norm == 0, 1)
    center = w3[:, :, 1, 1]
    # The quotient goes into the square: t^2 of a tiny gamma would underflow.
    equivalent_center = (t3 / norm)[:, None] * center + (t1 / norm)[:, None] * w1[:, :, 0, 0]
    return w3.square().sum() - center.square().sum() + equivalent_center.square().sum()


def _inference_scale(bn: nn.BatchNorm2d) -> Tensor:
    """t (C,), detached: the term shrinks kernels and must not be lowered by moving the gammas."""
    assert bn.running_var is not None
    return (bn.weight / torch.sqrt(bn.running_var + bn.eps)).detach()
