"""How far the outputs of a network in training are from those of the float network that it learns from."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_LEAST_COSINE = 0.1


def output_loss(outputs: Sequence[Tensor], aims: Sequence[Tensor], temperature: float = 1.0) -> Tensor:
    """Return the sum over the outputs of a network: `distillation_loss` for logits (N, K), else `relative_error`.

    Args:
        outputs: of the network.
        aims: of the teacher, in the same shapes.
        temperature: of the logits.
    """
    return torch.stack(
        [
            distillation_loss(output, aim, temperature) if aim.ndim == 2 else relative_error(output, aim)
            for output, aim in zip(outputs, aims, strict=True)
        ]
    ).sum()


def distillation_loss(logits: Tensor, aim: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the mean KL divergence of softmax(aim / T) from softmax(logits / T), times T^2.

    Hinton et al., "Distilling the Knowledge in a Neural Network", 2015. At T = 1 it is the KL of reports, in nats.

    Args:
        logits: (N, K).
        aim: (N, K) logits of the teacher.
        temperature: T.
    """
    student, teacher = (torch.log_softmax(values.float() / temperature, dim=1) for values in (logits, aim))
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def relative_error(output: Tensor, aim: Tensor) -> Tensor:
    """Return the squared error of an output as a share of the squares of its aim, of the same shape."""
    return (output - aim).square().sum() / aim.square().sum().clamp(min=torch.finfo(aim.dtype).tiny)


def block_error(output: Tensor, aim: Tensor) -> Tensor:
    """Return the squared error of a block's output to the teacher's, as a share of the teacher's squares.

    Channels are compared up to a positive factor: those of the network are scaled for rounding, the teacher's are not.
    Channels that have little in common, cosine below 0.1, have no such factor and are left out.

    Args:
        output: (N, C, H, W).
        aim: the same shape.
    """
    energy = aim.square().sum((0, 2, 3), keepdim=True)
    common = (output.detach() * aim).sum((0, 2, 3), keepdim=True)
    factor = common / energy
    usable = common > _LEAST_COSINE * (energy * output.detach().square().sum((0, 2, 3), keepdim=True)).sqrt()
    difference = torch.where(usable, output / torch.where(usable, factor, 1) - aim, 0)
    return difference.square().sum() / energy.sum().clamp(min=torch.finfo(energy.dtype).tiny)
