"""Rounding with error feedback: weights of a row are chosen together, for the inputs that they will meet.

Rounding to the nearest minimizes the error of each weight. What a network sees is the error of their weighted sum: for
inputs x with second moments M = E[x x^T], the row w with integers q and step s loses

    E[((w - s q) x)^2] = (w - s q) M (w - s q)^T.

`round_with_feedback` rounds column by column and moves the columns that are still free so that they make up for the
error so far (GPTQ: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
ICLR 2023, after Hassibi and Stork, "Optimal Brain Surgeon", 1993).
"""

import torch
from torch import Tensor

_ATTEMPTS = 8  # each with ten times the damping; after the third it is more than the moments themselves
_BLOCK = 64  # columns between two updates of the rest: a matrix product for many columns at once


def round_with_feedback(
    weight: Tensor, moments: Tensor, scale: Tensor, qmin: int, qmax: int, damping: float = 0.01
) -> Tensor:
    """Return the integers of `weight`, (O, K) of its dtype.

    Args:
        weight: (O, K), one row an output channel.
        moments: (K, K), second moments of the inputs; positive semi-definite.
        scale: (O,) step of each row.
        qmin, qmax: smallest and largest integer.
        damping: share of the mean diagonal that is added to the diagonal, so that inputs which never vary do no harm.
            More is added where rounding errors of the moments are larger, as with many identical channels.

    Raises:
        FloatingPointError: the moments are no numbers.
    """
    step = scale.to(weight.dtype)
    # Columns whose input is large come first: while there is much left that can make up for them.
    order = moments.diagonal().argsort(descending=True)
    factor = _inverse_factor(moments[order][:, order], damping).to(weight.dtype)
    rest = weight.T[order].contiguous()  # (K, O): a column of weights is contiguous in memory
    integers = torch.empty_like(rest)
    for start in range(0, len(rest), _BLOCK):
        stop = min(start + _BLOCK, len(rest))
        block, local = rest[start:stop], factor[start:stop, start:stop]
        errors = torch.empty_like(block)
        for column, own in enumerate(local.diagonal().tolist()):
            integers[start + column] = torch.round(block[column] / step).clamp_(qmin, qmax)
            errors[column] = (block[column] - integers[start + column] * step) / own
            block[column:].addr_(local[column, column:], errors[column], alpha=-1)
        rest[stop:].addmm_(factor[start:stop, stop:].T, errors, alpha=-1)
    result = torch.empty_like(integers)
    result[order] = integers
    return result.T.contiguous()


def _inverse_factor(moments: Tensor, damping: float) -> Tensor:
    """Return the upper triangular U with U^T U = (M + damping)^-1, in float64.

    With the order of its rows and columns reversed, M = L L^T gives M = V V^T with V upper triangular; U = V^-1.
    """
    moments = moments.double().flip(0, 1)
    mean = float(moments.diagonal().mean())
    added = damping * mean if mean > 0 else 1.0
    for _ in range(_ATTEMPTS):
        damped = moments.clone()
        damped.diagonal().add_(added)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            break
        added *= 10
    else:
        raise FloatingPointError("the inputs of a layer are not finite, or too large to round its weights for")
    upper = lower.flip(0, 1)
    one = torch.eye(len(upper), dtype=upper.dtype, device=upper.device)
    factor: Tensor = torch.linalg.solve_triangular(upper, one, upper=True)
    return factor
