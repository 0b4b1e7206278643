"""How good a quantized network is beside its float original: what a search goes by."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor, fx

from repquant.errors import InputError, shortened
from repquant.graph.run import Batch, run
from repquant.methods.divergence import are_logits
from repquant.numerics.distance import expected_drop, softmax_kl

Metric = Callable[[Callable[..., Any]], float]
"""Takes a network, called as the user's module is, and returns a figure; higher is better."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """How far a quantized network is from float.

    Attributes:
        drop: what is lost: of a metric in its own units, without one the points of top-1 that float itself expects to
            be lost, see `numerics.distance.expected_drop`.
        kl: mean KL of the softmax to float, in nats; None for a metric.
        agreement: same top-1, in percent; None for a metric.
    """

    drop: float
    kl: float | None = None
    agreement: float | None = None

    @property
    def loss(self) -> tuple[float, float]:
        """What tells a better score from a worse one.

        The expected drop is 0 for all that agree with float everywhere; the KL still tells them apart.
        """
        return self.drop, self.kl or 0.0


Judge = Callable[[fx.GraphModule], Score]


def figure_of(metric: Metric, network: Callable[..., Any]) -> float:
    """Return the figure that a metric gives a network.

    Raises:
        InputError: the metric raises, or what it returns is no finite number.
    """
    try:
        figure = metric(network)
    except Exception as error:
        raise InputError(f"the metric failed with {type(error).__name__}: {shortened(str(error))}") from error
    try:
        number = float(figure)
    except (TypeError, ValueError):
        raise InputError(f"the metric returned {shortened(repr(figure))}; it has to return one number") from None
    except OverflowError:  # of whole numbers, which Python may refuse to print as well
        raise InputError(
            "the metric returned a number too large for a float; it has to return a finite number"
        ) from None
    if not isfinite(number):
        raise InputError(f"the metric returned {number}; it has to return a finite number")
    return number


class MetricJudge:
    """Judges by the user's metric.

    Args:
        graph: the float network.
        metric: of a network.

    Raises:
        InputError: here and when it judges, as `figure_of`.
    """

    def __init__(self, graph: fx.GraphModule, metric: Metric) -> None:
        self._metric = metric
        self._reference = figure_of(metric, graph)

    def __call__(self, network: fx.GraphModule) -> Score:
        """Return how much lower the metric is."""
        return Score(drop=self._reference - figure_of(self._metric, network))


class LogitsJudge:
    """Judges by the logits, the first output of shape (N, K), on images without labels.

    Args:
        graph: the float network.
        batches: see `graph.run.inputs_of`; they are read once for each network.

    Raises:
        InputError: no batch came, or no output has the shape of logits.
    """

    def __init__(self, graph: fx.GraphModule, batches: Iterable[Batch]) -> None:
        self._batches = batches
        self._place: int | None = None
        self._reference = self._logits(graph)

    @property
    def images(self) -> int:
        """How many images it judges on."""
        return len(self._reference)

    def __call__(self, network: fx.GraphModule) -> Score:
        """Compare the logits of a network with those of the float network."""
        return compare_logits(self._reference, self._logits(network))

    @torch.inference_mode()
    def _logits(self, network: fx.GraphModule) -> Tensor:
        found = []
        for batch in self._batches:
            outputs = run(network, batch)
            if self._place is None:
                self._place = _first_logits(outputs)
            found.append(outputs[self._place].cpu())
        if not found:
            raise InputError("there are no images to judge networks on; give at least one batch")
        return torch.cat(found)


def compare_logits(float_logits: Tensor, logits: Tensor) -> Score:
    """Compare logits (N, K) of a quantized network with those of the float network."""
    return Score(
        drop=100 * float(expected_drop(float_logits, logits).mean()),
        kl=float(softmax_kl(float_logits, logits).mean()),
        agreement=100 * float((float_logits.argmax(1) == logits.argmax(1)).double().mean()),
    )


def _first_logits(outputs: tuple[Tensor, ...]) -> int:
    for place, output in enumerate(outputs):
        if are_logits(output):
            return place
    shapes = ", ".join(str(tuple(output.shape)) for output in outputs)
    raise InputError(f"no output has the shape of logits (N, K), they have {shapes}; give a metric to judge by")
