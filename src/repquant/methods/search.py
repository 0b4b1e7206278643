"""Try methods from the default to dearer ones until the best loses little enough.

In the end the rounding of the best is learned, as far as the time allows, and only then are layers kept in float.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from repquant.choices import LOSS_AWARE, Calibrator, Equalization, Identity, Rounding
from repquant.methods.judges import Score
from repquant.methods.method import PtqMethod, ReconstructionOptions

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


@dataclass(frozen=True)
class Outcome:
    """What a search tried, which of it is best, and why it ended.

    Attributes:
        attempts: candidates and scores in the order of trying.
        best: index of the chosen one, the best of all.
        met: its drop is within the limit.
        reason: in a sentence.
    """

    attempts: tuple[tuple[Candidate, Score], ...]
    best: int
    met: bool
    reason: str


def methods(has_identity: bool, calibrator: Calibrator = "mse") -> tuple[Candidate, ...]:
    """Return the default method, and those that take about as long; the last one changes the served graph.

    Args:
        has_identity: whether identity branches can be set apart.
        calibrator: of the default method, see `default_calibrator`; it finds the ranges of the others too, where they
            differ in something else.
    """
    names = dict.fromkeys((calibrator, "mse", "percentile", "entropy", LOSS_AWARE))
    as_it_is = _candidate(equalization="none", calibrator=calibrator)  # where the noise model errs
    residual = (_candidate(identity="residual", calibrator=calibrator),) if has_identity else ()
    return (*(_candidate(calibrator=name) for name in names), as_it_is, *residual)


def _candidate(
    rounding: Rounding = "feedback",
    identity: Identity = "fused",
    calibrator: str = "mse",
    steps: int = STEPS,
    equalization: Literal["none", Equalization] = "noise",
) -> Candidate:
    words = [
        "not equalized" if equalization == "none" else "equalized",
        _ROUNDINGS[rounding],
        *([f"{steps} steps"] if rounding == "learned" and steps != STEPS else []),
        *([f"identity as {identity}"] if identity != "fused" else []),
        *([f"{calibrator} ranges"] if calibrator != "mse" else []),
    ]
    method = PtqMethod(
        equalization=equalization,
        rounding=rounding,
        identity=identity,
        reconstruction=ReconstructionOptions(steps=steps),
    )
    return Candidate(name=", ".join(words), method=method, calibrator=calibrator)


def with_learned_rounding(best: Candidate, steps: int) -> Candidate:
    """Return the best candidate with its rounding learned in so many steps a layer."""
    return _candidate("learned", best.method.identity, best.calibrator, steps, best.method.equalization)


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


def find_best(
    candidates: Iterable[Candidate],
    refinements: Sequence[Callable[[Candidate], Iterable[Candidate]]],
    attempt: Callable[[Candidate], Score],
    max_drop: float,
    out_of_time: Callable[[], bool],
) -> Outcome:
    """Try candidates until one is within the limit, or there is no time left, and take the best of them.

    Args:
        candidates: to try first; at least one is tried, however little time there is.
        refinements: what to try after them, one after the other, each given the best so far. What they do before their
            first candidate may take time; none is asked when there is none left.
        attempt: quantizes and judges.
        max_drop: largest drop that is accepted, in the units of the score.
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
        if score.drop <= max_drop:
            what = "a drop" if score.kl is None else "an expected drop"  # a metric is measured
            reason = (
                f"{candidate.name}: the best of {len(attempts)} tried, with {what} of {score.drop:.3f}, at most "
                f"{max_drop:g}"
            )
            return Outcome(tuple(attempts), best(), True, reason)
    if is_cut_short:
        reason = f"the time was up before a drop of {max_drop:g} was reached: this is the best so far"
    else:
        reason = f"nothing tried reached a drop of {max_drop:g}: this is the best of {len(attempts)}"
    return Outcome(tuple(attempts), best(), False, reason)
