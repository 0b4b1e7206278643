"""Try methods from cheap to dear until one loses little enough, judged on images that need no labels."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from repquant.numerics.distance import expected_drop, softmax_kl
from repquant.quant.ptq import PtqMethod

_FLOAT_LAYERS = (1, 2, 4, 8)  # kept in float at a time, as a last resort


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A way to quantize.

    Attributes:
        name: for a person.
        method: beside ranges.
        calibrator: of the activations.
        keep_float: layers that stay in float.
    """

    name: str
    method: PtqMethod
    calibrator: str = "mse"
    keep_float: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Score:
    """How far a quantized model is from float.

    Attributes:
        agreement: same top-1, in percent.
        kl: mean KL of the softmax to float, in nats.
        expected_drop: points of top-1 that float itself expects to be lost, see `numerics.distance.expected_drop`.
    """

    agreement: float
    kl: float
    expected_drop: float


@dataclass(frozen=True)
class Outcome:
    """What a search tried, which of it is best, and why it ended.

    Attributes:
        attempts: candidates and scores in the order of trying.
        best: index of the chosen one.
        met: its expected drop is within the limit.
        reason: in a sentence.
    """

    attempts: tuple[tuple[Candidate, Score], ...]
    best: int
    met: bool
    reason: str


def judge(float_logits: Tensor, logits: Tensor) -> Score:
    """Compare the outputs (N, K) of a quantized model with those of the float model."""
    return Score(
        agreement=100 * float((float_logits.argmax(1) == logits.argmax(1)).double().mean()),
        kl=float(softmax_kl(float_logits, logits).mean()),
        expected_drop=100 * float(expected_drop(float_logits, logits).mean()),
    )


def methods(has_identity: bool) -> tuple[Candidate, ...]:
    """Return the candidates without layers in float, from cheap to dear in work and, last, in the served graph."""
    nearest = Candidate(name="equalized, nearest, biases corrected", method=PtqMethod(rounding="nearest"))
    feedback = Candidate(name="equalized, error feedback", method=PtqMethod())
    others = tuple(
        replace(feedback, name=f"{feedback.name}, {calibrator} ranges", calibrator=calibrator)
        for calibrator in ("percentile", "entropy")
    )
    residual = replace(feedback, name="equalized, identity as residual", method=PtqMethod(identity="residual"))
    return (nearest, feedback, *others, *((residual,) if has_identity else ()))


def with_float_layers(best: Candidate, sensitive: Sequence[str]) -> tuple[Candidate, ...]:
    """Return the best candidate with 1, 2, 4 and 8 layers in float, the most sensitive ones first."""
    return tuple(
        replace(best, name=f"{best.name}, {count} in float", keep_float=(*best.keep_float, *sensitive[:count]))
        for count in _FLOAT_LAYERS
        if count < len(sensitive)
    )


def search(
    candidates: Iterable[Candidate],
    last_resort: Callable[[Candidate], Iterable[Candidate]],
    attempt: Callable[[Candidate], Score],
    max_drop: float,
    out_of_time: Callable[[], bool],
) -> Outcome:
    """Try candidates until one is within the limit, or there is no time left.

    Args:
        candidates: to try first; at least one is tried, however little time there is.
        last_resort: what to try after them, given the best of them.
        attempt: quantizes and judges.
        max_drop: largest expected drop that is accepted, in points of top-1.
        out_of_time: asked before every attempt but the first.
    """
    attempts: list[tuple[Candidate, Score]] = []

    def best() -> int:
        # The expected drop is 0 for all that agree with float everywhere; the KL still tells them apart.
        return min(range(len(attempts)), key=lambda i: (attempts[i][1].expected_drop, attempts[i][1].kl))

    def in_order() -> Iterator[Candidate]:
        yield from candidates
        if not out_of_time():  # to find sensitive layers takes time too
            yield from last_resort(attempts[best()][0])

    for candidate in in_order():
        if attempts and out_of_time():
            break
        score = attempt(candidate)
        attempts.append((candidate, score))
        if score.expected_drop <= max_drop:
            reason = (
                f"{candidate.name}: the first of {len(attempts)} tried with an expected drop of at most {max_drop:g} "
                f"points ({score.expected_drop:.3f})"
            )
            return Outcome(tuple(attempts), len(attempts) - 1, True, reason)
    if out_of_time():
        reason = f"the time was up before a drop of {max_drop:g} points was reached: this is the best so far"
    else:
        reason = f"nothing tried reached a drop of {max_drop:g} points: this is the best of {len(attempts)}"
    return Outcome(tuple(attempts), best(), False, reason)
