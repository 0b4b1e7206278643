"""How far the outputs of a network are from those of the float network."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import log10

import torch
from torch import Tensor

from repquant.numerics.distance import softmax_kl


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """How far a network's outputs are from those of the float network.

    Attributes:
        kl: mean KL(softmax(float) || softmax(network)), in nats, summed over the outputs that are logits (N, K); None
            where there is none.
        agreement: images on which both name the same class in all of these outputs, in percent; None as before.
        sqnr_db: signal to noise of the other outputs, the worst of them; None where there is none, or no noise.
    """

    kl: float | None = None
    agreement: float | None = None
    sqnr_db: float | None = None

    @property
    def harm(self) -> float:
        """What tells a worse network from a better one: the KL, and the noise's share of the other outputs."""
        return (self.kl or 0.0) + (0.0 if self.sqnr_db is None else 10 ** (-self.sqnr_db / 10))


def are_logits(output: Tensor) -> bool:
    """Whether an output has the shape of logits, (N, K) floats with K > 1."""
    return output.is_floating_point() and output.dim() == 2 and output.shape[1] > 1


class Comparison:
    """Sums over batches of what `Divergence` is the mean of.

    Args:
        what: is compared, for the message of an error.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._kl = 0.0
        self._same = 0
        self._images = 0
        self._energies: dict[int, tuple[float, float]] = {}  # output -> signal and noise

    def add(self, reference: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """Take in the outputs of a batch.

        Raises:
            FloatingPointError: an output is NaN or infinite where the reference is not.
        """
        same: Tensor | None = None
        for index, (expected, found) in enumerate(zip(reference, outputs, strict=True)):
            if not expected.is_floating_point():
                continue
            if not torch.isfinite(found[torch.isfinite(expected)]).all():
                raise FloatingPointError(f"{self._what} returned NaN or infinite values")
            if are_logits(expected):
                self._kl += float(softmax_kl(expected, found).sum())
                equal = expected.argmax(1) == found.argmax(1)
                same = equal if same is None else same & equal
            else:
                expected, found = expected.double(), found.double()
                signal, noise = self._energies.get(index, (0.0, 0.0))
                difference = torch.where(torch.isfinite(expected), found - expected, 0.0)
                signal += float(expected.nan_to_num(0.0, 0.0, 0.0).square().sum())
                self._energies[index] = signal, noise + float(difference.square().sum())
        if same is not None:
            self._same += int(same.sum())
            self._images += len(same)

    def result(self) -> Divergence:
        """Return the means."""
        ratios = [10 * log10(signal / noise) for signal, noise in self._energies.values() if signal > 0 and noise > 0]
        return Divergence(
            kl=self._kl / self._images if self._images else None,
            agreement=100 * self._same / self._images if self._images else None,
            sqnr_db=min(ratios, default=None),
        )


def compare(
    comparisons: Mapping[str, Comparison], reference: Sequence[Tensor]
) -> Callable[[str, Sequence[Tensor]], None]:
    """Return a function that takes in the outputs of a batch by the name of a comparison."""

    def see(name: str, outputs: Sequence[Tensor]) -> None:
        comparisons[name].add(reference, outputs)

    return see
