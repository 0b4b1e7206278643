"""What the outputs of a layer lack, as far as its inputs can tell: what the layers before it lost and it can give back.

The inputs of a layer in a quantized network are those of the float network and an error. With its float weights the
outputs lack something; a part of that is a linear function of the very inputs, as neighbouring values and channels say
much of each other and their errors do not. So the weights that give the float outputs best for these inputs are others,
and they are what is rounded (asymmetric calibration; Li et al., "GPTAQ: Efficient Finetuning-Free Quantization for
Asymmetric Calibration", ICML 2025, correct while they round; here it is ridge regression before).
"""

import torch
from torch import Tensor

from repquant.numerics.channel_fit import GAINS

_EXPLAINED = 0.1
"""Share of what outputs lack that inputs are expected to explain; with less, weights stay nearer to the float ones."""
_SMALLEST = 1e-30  # power of an input: those that are always 0 need a ridge as well
_CONSTANT = 1e-6  # share of the squared mean below which the variance of an input is an error of rounding


class MissingOutputs:
    """Products of rows of inputs (R, G, K) and of what the G * P outputs of each row lack (R, G * P).

    They are summed about the weighted mean of the first inputs: what is lost to rounding is small even if it is large.
    """

    def __init__(self) -> None:
        self._weight = 0.0
        self._origin: Tensor | None = None
        self._inputs = self._lacking = self._products = torch.zeros(())

    def update(self, inputs: Tensor, lacking: Tensor, weight: Tensor) -> None:
        """Add rows, which count as `weight` (R,) says."""
        weight = weight.to(inputs.dtype).view(-1, 1, 1)
        if self._origin is None:
            self._origin = (inputs * weight).sum(0) / weight.sum()
        inputs = inputs - self._origin
        lacking = lacking.unflatten(1, (inputs.shape[1], -1)) * weight
        self._weight += float(weight.sum())
        self._inputs = self._inputs + (inputs * weight).sum(0)
        self._lacking = self._lacking + lacking.sum(0)
        self._products = self._products + torch.einsum("rgp,rgk->gpk", lacking, inputs)

    def moments(self, *, central: bool) -> Tensor:
        """Return the second moments (G, P, K) about the means, or about 0."""
        assert self._origin is not None
        about = -self._inputs / self._weight if central else self._origin
        lacking = self._lacking / self._weight
        return self._products / self._weight + lacking.unsqueeze(2) * about.unsqueeze(1)


def correct_weights(weight: Tensor, inputs: Tensor, lacking: Tensor, mean: Tensor, rows: int) -> Tensor:
    """Return weights (G, P, K) with which the outputs lack less than with the float weights.

    The ridge is the best one where the inputs explain `_EXPLAINED` of what lacks, each weight as much as another, and
    rows are independent (Hoerl and Kennard, "Ridge Regression", 1970). Those of one image are not quite.

    Least squares take noise for a reason to make outputs smaller, and each layer behind would hand that on. So each
    output is scaled to grow with the float output as it did.

    Args:
        weight: (G, P, K), float.
        inputs: (G, K, K) second moments of the inputs, about the mean or about 0.
        lacking: (G, P, K) those of what the outputs lack with the inputs.
        mean: (G, K) of the inputs.
        rows: number of rows that all are of.

    Raises:
        FloatingPointError: the moments are no numbers.
    """
    damped = inputs.clone()
    diagonal = damped.diagonal(dim1=1, dim2=2)
    least = (_CONSTANT * mean.square().mean(1, keepdim=True)).clamp(min=_SMALLEST)
    diagonal += damped.shape[-1] / (rows * _EXPLAINED) * torch.maximum(diagonal.mean(1, keepdim=True), least)
    correction: Tensor = torch.linalg.solve(damped, lacking.mT).mT
    corrected = weight + correction
    if not corrected.isfinite().all():
        raise FloatingPointError("the outputs of a layer are not finite, or too large to round its weights for")
    wanted = weight @ inputs + lacking
    before, after = (wanted * weight).sum(2, keepdim=True), (wanted * corrected).sum(2, keepdim=True)
    scale = torch.where((before > 0) & (after > 0), before / after, torch.ones_like(before))
    return corrected * scale.clamp(*GAINS)
