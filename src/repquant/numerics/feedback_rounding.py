"""Rounding with error feedback: weights of a row are chosen together, for the inputs that they will meet.

Rounding to the nearest minimizes the error of each weight. What a network sees is the error of their weighted sum: for
inputs x with second moments M = E[x x^T], the row w with integers q and step s loses

    E[((w - s q) x)^2] = (w - s q) M (w - s q)^T.

`FeedbackRounding` rounds column by column; the columns that are still free make up for the error so far (GPTQ:
Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", ICLR 2023, after
Hassibi and Stork, "Optimal Brain Surgeon", 1993). With M = U^T U, U upper triangular, and the error e = w - s q the
loss is |U e^T|^2, whose last term is the last column's alone. So from the last column backwards each takes the integer
that makes its own term smallest (Babai, "On Lovasz' Lattice Reduction and the Nearest Lattice Point Problem", 1986). In
exact arithmetic that is what GPTQ gives, without the inverse of M.
"""

import torch
from torch import Tensor

_ATTEMPTS = 8  # each with ten times the damping; after the third it is more than the moments themselves
_DAMPING_OF_LOSS = 0.1  # of the damping: some, as inputs that never varied may vary elsewhere
_BLOCK = 64  # columns between two updates of the rest: a matrix product for many columns at once


class FeedbackRounding:
    """Rounds weights for inputs of given second moments.

    Args:
        moments: (K, K), second moments of the inputs; positive semi-definite.
        damping: share of the mean diagonal that is added to the diagonal, so that inputs which never vary do no harm.
            More is added where rounding errors of the moments are larger, as with many identical channels.

    Raises:
        FloatingPointError: the moments are no numbers.
    """

    def __init__(self, moments: Tensor, damping: float = 0.01) -> None:
        # Columns whose input is large are rounded first, from the last one backwards: much is left to make up for them.
        self._order = moments.diagonal().argsort(descending=True).flip(0)
        factor, self._added = _factor(moments[self._order][:, self._order], damping)
        self._powers = factor.diagonal().square()
        self._factor = factor.div_(factor.diagonal().clone().unsqueeze(1)).to(moments.dtype)

    def round(self, weight: Tensor, scale: Tensor, qmin: int, qmax: int) -> Tensor:
        """Return the integers (O, K), of the weight's dtype.

        Args:
            weight: (O, K), one row an output channel.
            scale: (O,) step of each row.
            qmin, qmax: smallest and largest integer.
        """
        factor = self._factor.to(weight.dtype)
        exact = self._in_steps(weight, scale)
        integers, errors = torch.empty_like(exact), torch.empty_like(exact)
        for stop in range(len(exact), 0, -_BLOCK):
            start = max(0, stop - _BLOCK)
            wanted = torch.addmm(exact[start:stop], factor[start:stop, stop:], errors[stop:])
            for column in range(stop - 1, start - 1, -1):
                later = slice(column + 1, stop)
                own = torch.addmv(wanted[column - start], errors[later].T, factor[column, later])
                torch.round(own, out=integers[column]).clamp_(qmin, qmax)
                torch.sub(exact[column], integers[column], out=errors[column])
        result = torch.empty_like(integers)
        result[self._order] = integers
        return result.T.contiguous()

    def loss(self, weight: Tensor, integers: Tensor, scale: Tensor) -> Tensor:
        """Return what each row loses, (O,) float64, with a tenth of the damping.

        Args:
            weight: (O, K).
            integers: (O, K).
            scale: (O,) step of each row.
        """
        errors = self._in_steps(weight, scale) - integers.T[self._order]
        damped = self._powers @ (self._factor.to(weight.dtype) @ errors).square().double()
        too_much = (1 - _DAMPING_OF_LOSS) * self._added * errors.square().double().sum(0)
        return (damped - too_much) * scale.double().square()

    def _in_steps(self, weight: Tensor, scale: Tensor) -> Tensor:
        """Return the weights in steps, (K, O): a column of weights is contiguous."""
        return (weight / scale.to(weight.dtype).unsqueeze(1)).T[self._order]


def _factor(moments: Tensor, damping: float) -> tuple[Tensor, float]:
    """Return the upper triangular U in float64 with U^T U the damped moments, and what was added to their diagonal."""
    moments = moments.double()
    diagonal = moments.diagonal()
    mean = float(diagonal.mean())
    added = damping * mean if mean > 0 else 1.0
    total = 0.0
    for _ in range(_ATTEMPTS):
        diagonal.add_(added - total)
        total = added
        upper, failed = torch.linalg.cholesky_ex(moments, upper=True)
        if not failed:
            break
        added *= 10
    else:
        raise FloatingPointError("the inputs of a layer are not finite, or too large to round its weights for")
    return upper, total
