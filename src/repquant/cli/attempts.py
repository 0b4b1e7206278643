"""The attempts of a search for a quantized network that loses little: on real images, and against the clock."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

import torch

from repquant.cli.console import progress, say
from repquant.cli.quantizing import Calibrated, calibrate, round_model
from repquant.quant.calibrate import activation_ranges
from repquant.quant.learning_time import seconds_a_step
from repquant.quant.ranking import rank_layers
from repquant.quant.rounded import with_float_layers
from repquant.quant.search import FEWEST_STEPS, affordable_steps, in_time, judge, keeping_layers, with_learned_rounding

if TYPE_CHECKING:
    from repquant.cli.inputs import Calibration
    from repquant.data.loading import Loader
    from repquant.models.network import RepVGG
    from repquant.quant.convert import Range
    from repquant.quant.ptq import PtqMethod
    from repquant.quant.rounded import Rounded
    from repquant.quant.search import Candidate, Score
    from repquant.targets.target import Target

_RANKING_IMAGES = 64  # the order of the layers counts, not how much each of them loses


@dataclass(frozen=True)
class _Tried:
    candidate: Candidate
    score: Score
    rounded: Rounded[RepVGG]
    seconds: float


class Attempts:
    """Candidates are quantized and judged here; the best of them is kept.

    Args:
        model: deploy model in float.
        target: its schemes.
        calibration: the images that it is quantized with.
        held_back: other images, which it is judged on.
        kept: layers that stay in float in any case.
        percentile: of the calibrator of that name.
        minutes: until the time is up.

    Attributes:
        images: that candidates are judged on.
        seconds: of each attempt, in order.
        notes: what was left out, and why.
    """

    def __init__(
        self,
        model: RepVGG,
        target: Target,
        calibration: Calibration,
        held_back: Loader,
        kept: Collection[str],
        percentile: float,
        minutes: float,
    ) -> None:
        self.seconds: list[float] = []
        self.notes: list[str] = []
        self._end = perf_counter() + 60 * minutes
        self._model, self._target, self._calibration, self._held_back = model, target, calibration, held_back
        self._kept, self._percentile = tuple(kept), percentile
        self._calibrated: dict[tuple[str, str], Calibrated] = {}
        self._best: _Tried | None = None
        self._reference = self._logits(model)
        self.images = len(self._reference)

    def out_of_time(self) -> bool:
        """Whether the minutes are over."""
        return perf_counter() > self._end

    def __call__(self, candidate: Candidate) -> Score:
        """Quantize the model so, and judge it."""
        began = perf_counter()
        rounded = self._round(candidate)
        score = judge(self._reference, self._logits(self._network(candidate, rounded)))
        tried = _Tried(candidate, score, rounded, perf_counter() - began)
        if self._best is None or score.loss < self._best.score.loss:
            self._best = tried
        self.seconds.append(tried.seconds)
        say(
            f"{candidate.name}: expected drop {score.expected_drop:.3f} points, agreement {score.agreement:.2f} %, "
            f"KL {score.kl:.2e}, {tried.seconds:.0f} s"
        )
        return score

    def learn(self, best: Candidate) -> Iterator[Candidate]:
        """Give the best candidate with learned rounding, in as many steps as there is time for."""
        assert self._best is not None
        a_step = seconds_a_step(self._prepared(best.method).model, self._target.weight, self._kept)
        left = self._end - perf_counter()
        # Beside the steps it takes about as long as the best attempt: the images pass through the same networks.
        if steps := affordable_steps(a_step, left - self._best.seconds):
            yield with_learned_rounding(best, steps)
            return
        at_least = FEWEST_STEPS * a_step + self._best.seconds
        self.notes.append(
            f"learned rounding was left out: it would take at least {at_least:.0f} s, and {left:.0f} s were left; "
            "--minutes gives it more"
        )
        say(self.notes[-1])

    def keep_layers(self, best: Candidate) -> Iterator[Candidate]:
        """Give the best candidate with its most sensitive layers in float."""
        images = min(_RANKING_IMAGES, self._held_back.images)
        with progress("find sensitive layers", images) as advance:
            network, model = self.network(best), self._prepared(best.method).model
            layers = rank_layers(model, network, in_time(self._first_images(images), self.out_of_time), advance)
        yield from keeping_layers(best, layers)

    def network(self, candidate: Candidate) -> RepVGG:
        """Return the quantized network of the best candidate."""
        assert self._best is not None
        assert candidate == self._best.candidate, "the others are not kept"
        return self._network(candidate, self._best.rounded)

    def _round(self, candidate: Candidate) -> Rounded[RepVGG]:
        prepared, floats = self._prepared(candidate.method), (*self._kept, *candidate.keep_float)
        if candidate.method.rounding == "learned" and self._best and self._best.candidate.method == candidate.method:
            # To learn it all again for a layer less would take minutes.
            return with_float_layers(self._best.rounded, prepared.model, floats)
        return round_model(
            prepared.model,
            self._ranges(candidate),
            self._target,
            candidate.method,
            self._calibration,
            floats,
            candidate.name,
        )

    def _network(self, candidate: Candidate, rounded: Rounded[RepVGG]) -> RepVGG:
        return rounded.quantized(self._ranges(candidate), self._target, (*self._kept, *candidate.keep_float))

    def _ranges(self, candidate: Candidate) -> dict[str, Range]:
        histograms = self._prepared(candidate.method).histograms
        return activation_ranges(candidate.calibrator, histograms, self._target, percentile=self._percentile)

    def _prepared(self, method: PtqMethod) -> Calibrated:
        key = (method.equalization, method.identity)
        if key not in self._calibrated:
            self._calibrated[key] = calibrate(self._model, method, self._target, self._calibration, self._kept)
        return self._calibrated[key]

    def _first_images(self, count: int) -> Iterator[torch.Tensor]:
        for batch in self._held_back:
            images = batch.images[:count]
            count -= len(images)
            yield images
            if count == 0:
                return

    @torch.inference_mode()
    def _logits(self, network: RepVGG) -> torch.Tensor:
        return torch.cat([network(batch.images) for batch in self._held_back])
