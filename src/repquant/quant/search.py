"""Try methods from cheap to dear until one loses little enough, judged on images that need no labels.

In the end the rounding of the best is learned, as far as the time allows, and only then are layers kept in float.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from torch import Tensor

from repquant.numerics.distance import expected_drop, softmax_kl
from repquant.quant.ptq import Identity, PtqMethod, Rounding
from repquant.quant.reconstruct import ReconstructionOptions

ItemT = TypeVar("ItemT")

STEPS = ReconstructionOptions().steps
"""Of learned rounding, where there is time for them."""

FEWEST_STEPS = 200
"""Of learned rounding; it is not begun for fewer."""

_ROUNDINGS: dict[Rounding, str] = {
    "nearest": "nearest, biases corrected",
    "feedback": "error feedback",
    "learned": "learned rounding",
}
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

    @property
    def loss(self) -> tuple[float, float]:
        """What tells a better score from a worse one.

        The expected drop is 0 for all that agree with float everywhere; the KL still tells them apart.
        """
        return self.expected_drop, self.kl


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
    """Return the candidates that take about as long as each other; the last one changes the served graph."""
    nearest, feedback = _candidate(rounding="nearest"), _candidate()
    others = tuple(_candidate(calibrator=calibrator) for calibrator in ("percentile", "entropy"))
    return (nearest, feedback, *others, *((_candidate(identity="residual"),) if has_identity else ()))


def _candidate(
    rounding: Rounding = "feedback", identity: Identity = "fused", calibrator: str = "mse", steps: int = STEPS
) -> Candidate:
    words = [
        "equalized",
        _ROUNDINGS[rounding],
        *([f"{steps} steps"] if rounding == "learned" and steps != STEPS else []),
        *([f"identity as {identity}"] if identity != "fused" else []),
        *([f"{calibrator} ranges"] if calibrator != "mse" else []),
    ]
    method = PtqMethod(rounding=rounding, identity=identity, reconstruction=ReconstructionOptions(steps=steps))
    return Candidate(name=", ".join(words), method=method, calibrator=calibrator)


def with_learned_rounding(best: Candidate, steps: int) -> Candidate:
    """Return the best candidate with its rounding learned in so many steps a layer."""
    return _candidate("learned", best.method.identity, best.calibrator, steps)


def affordable_steps(seconds_a_step: float, seconds: float) -> int:
    """Return the steps of learned rounding that the time is enough for, at most `STEPS`; 0 if below `FEWEST_STEPS`."""
    steps = int(min(STEPS, seconds / seconds_a_step))
    return steps if steps >= min(FEWEST_STEPS, STEPS) else 0


def in_time(items: Iterable[ItemT], out_of_time: Callable[[], bool]) -> Iterator[ItemT]:
    """Give items as long as there is time, the first one in any case."""
    for item in items:
        yield item
        if out_of_time():
            return


def keeping_layers(best: Candidate, sensitive: Sequence[str]) -> tuple[Candidate, ...]:
    """Return the best candidate with 1, 2, 4 and 8 layers in float, the most sensitive ones first."""
    return tuple(
        replace(best, name=f"{best.name}, {count} in float", keep_float=(*best.keep_float, *sensitive[:count]))
        for count in _FLOAT_LAYERS
        if count < len(sensitive)
    )


def search(
    candidates: Iterable[Candidate],
    refinements: Sequence[Callable[[Candidate], Iterable[Candidate]]],
    attempt: Callable[[Candidate], Score],
    max_drop: float,
    out_of_time: Callable[[], bool],
) -> Outcome:
    """Try candidates until one is within the limit, or there is no time left.

    Args:
        candidates: to try first; at least one is tried, however little time there is.
        refinements: what to try after them, one after the other, each given the best so far. What they do before their
            first candidate may take time; none is asked when there is none left.
        attempt: quantizes and judges.
        max_drop: largest expected drop that is accepted, in points of top-1.
        out_of_time: asked before every attempt but the first, and before every refinement.
    """
    attempts: list[tuple[Candidate, Score]] = []
    is_cut_short = False

    def best() -> int:
        return min(range(len(attempts)), key=lambda index: attempts[index][1].loss)

    def in_order() -> Iterator[Candidate]:
        nonlocal is_cut_short
        yield from candidates
        for refine in refinements:
            if is_cut_short := out_of_time():
                return
            yield from refine(attempts[best()][0])

    for candidate in in_order():
        if attempts and (is_cut_short := out_of_time()):
            break
        score = attempt(candidate)
        attempts.append((candidate, score))
        if score.expected_drop <= max_drop:
            reason = (
                f"{candidate.name}: the first of {len(attempts)} tried with an expected drop of at most {max_drop:g} "
                f"points ({score.expected_drop:.3f})"
            )
            return Outcome(tuple(attempts), len(attempts) - 1, True, reason)
    if is_cut_short:
        reason = f"the time was up before a drop of {max_drop:g} points was reached: this is the best so far"
    else:
        reason = f"nothing tried reached a drop of {max_drop:g} points: this is the best of {len(attempts)}"
    return Outcome(tuple(attempts), best(), False, reason)
