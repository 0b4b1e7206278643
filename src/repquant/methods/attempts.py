"""The attempts of a search for a quantized network that loses little, against the clock."""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from time import perf_counter

from torch import fx

from repquant.graph.layout import Layout, find_layout
from repquant.graph.plan import Plan, Range, make_plan
from repquant.graph.run import Batch
from repquant.methods.calibrate import collect_histograms, find_ranges
from repquant.methods.judges import Judge, Score
from repquant.methods.learning_time import seconds_a_step
from repquant.methods.method import PtqMethod
from repquant.methods.mixed_precision import choose_weight_bits, preparing_target
from repquant.methods.ptq import prepare, round_graph
from repquant.methods.ranking import rank_layers
from repquant.methods.rounded import Rounded, with_float_layers
from repquant.methods.search import (
    FEWEST_STEPS,
    Candidate,
    affordable_steps,
    in_time,
    keeping_layers,
    with_learned_rounding,
)
from repquant.numerics.histogram import Histogram
from repquant.targets.target import Target


@dataclass(frozen=True, kw_only=True)
class SearchData:
    """What a search looks at; each is read several times.

    Attributes:
        ranges: batches that ranges are calibrated on.
        rounding: batches that weights are rounded for.
        ranking: batches that ranges are compared on, and layers ranked, should some stay in float; 64 images are
            enough, since the order counts, not how much each loses.
    """

    ranges: Iterable[Batch]
    rounding: Iterable[Batch]
    ranking: Iterable[Batch]


@dataclass(frozen=True)
class _Tried:
    """An attempt; `seconds` are of rounding and judging: what comes before is there for the next one."""

    candidate: Candidate
    score: Score
    rounded: Rounded
    seconds: float


@dataclass(frozen=True)
class _Prepared:
    """A prepared network, and what was found for it.

    Attributes:
        graph: the network.
        histograms: sources of a tensor -> histogram of its values.
        ranges: calibrator and sources of a tensor -> its range.
        weight_bits: bits of its layers, once chosen.
    """

    graph: fx.GraphModule
    histograms: dict[tuple[str, ...], Histogram] = field(default_factory=dict)
    ranges: dict[tuple[str, ...], Range] = field(default_factory=dict)
    weight_bits: dict[str, int] = field(default_factory=dict)


class Attempts:
    """Candidates are quantized and judged here; the best of them is kept.

    Args:
        graph: from `capture`, in float.
        target: its schemes.
        data: the images.
        judge: of quantized networks.
        keep_float: layers that stay in float in any case.
        percentile: of the calibrator of that name.
        average_bits: of the weights, see `methods.mixed_precision`; None for those of the target in all layers.
        minutes: until the time is up.
        on_progress: called with the name of a step and what was done of it since the last call.
        on_attempt: called after each attempt with the candidate, its score and the seconds that it took.

    Attributes:
        seconds: of each attempt, in order.
        notes: what was left out, and why.
    """

    def __init__(
        self,
        graph: fx.GraphModule,
        target: Target,
        data: SearchData,
        judge: Judge,
        *,
        keep_float: Collection[str] = (),
        percentile: float = 99.99,
        average_bits: float | None = None,
        minutes: float = 10.0,
        on_progress: Callable[[str, int], None] = lambda *_: None,
        on_attempt: Callable[[Candidate, Score, float], None] = lambda *_: None,
    ) -> None:
        self.seconds: list[float] = []
        self.notes: list[str] = []
        self._end = perf_counter() + 60 * minutes
        self._graph, self._target, self._data, self._judge = graph, target, data, judge
        self._kept, self._percentile, self._average_bits = tuple(keep_float), percentile, average_bits
        self._on_progress, self._on_attempt = on_progress, on_attempt
        self._networks: dict[tuple[str, str], _Prepared] = {}
        self._best: _Tried | None = None

    def out_of_time(self) -> bool:
        """Whether the minutes are over."""
        return perf_counter() > self._end

    def __call__(self, candidate: Candidate) -> Score:
        """Quantize the network so, and judge it."""
        began = perf_counter()
        plan = self._plan(candidate)
        planned = perf_counter()
        rounded = self._round(candidate, plan)
        self._on_progress("judge", 0)
        score = self._judge(rounded.simulated())
        ended = perf_counter()
        if self._best is None or score.loss < self._best.score.loss:
            self._best = _Tried(candidate, score, rounded, ended - planned)
        self.seconds.append(ended - began)
        self._on_attempt(candidate, score, ended - began)
        return score

    def learn(self, best: Candidate) -> Iterator[Candidate]:
        """Give the best candidate with learned rounding, in as many steps as there is time for."""
        assert self._best is not None
        layers = self._best.rounded.plan.layout.layers
        a_step = seconds_a_step(self._prepared(best.method).graph, layers, self._target.weight)
        left = self._end - perf_counter()
        # Beside the steps it takes about as long as the best attempt: the images pass through the same networks.
        if steps := affordable_steps(a_step, left - self._best.seconds):
            yield with_learned_rounding(best, steps)
            return
        at_least = FEWEST_STEPS * a_step + self._best.seconds
        self.notes.append(
            f"learned rounding was left out: it would take at least {at_least:.0f} s, and {left:.0f} s were left; more "
            "minutes give it the time"
        )

    def keep_layers(self, best: Candidate) -> Iterator[Candidate]:
        """Give the best candidate with its most sensitive layers in float; none where an average of bits is held to."""
        if self._average_bits is not None:
            self.notes.append(
                "no layer was kept in float: it would hold 32 bits for each weight, and `average_bits` is there to "
                "save them"
            )
            return
        rounded, graph = self.rounded(best), self._prepared(best.method).graph
        batches = in_time(self._data.ranking, self.out_of_time)
        yield from keeping_layers(best, rank_layers(graph, rounded, batches, self._telling("find sensitive layers")))

    def rounded(self, candidate: Candidate) -> Rounded:
        """Return the network of the best candidate."""
        assert self._best is not None
        assert candidate == self._best.candidate, "the others are not kept"
        return self._best.rounded

    def _round(self, candidate: Candidate, plan: Plan) -> Rounded:
        graph = self._prepared(candidate.method).graph
        if candidate.method.rounding == "learned" and self._best and self._best.candidate.method == candidate.method:
            # To learn it all again for a layer less would take minutes.
            return with_float_layers(self._best.rounded, graph, plan)
        return round_graph(graph, plan, candidate.method, self._data.rounding, self._telling(candidate.name))

    def _plan(self, candidate: Candidate) -> Plan:
        prepared = self._prepared(candidate.method)
        layout = find_layout(prepared.graph, self._target, (*self._kept, *candidate.keep_float))
        plan = make_plan(layout, self._ranges(candidate.calibrator, prepared, layout), self._target)
        if self._average_bits is None:
            return plan
        if not prepared.weight_bits:
            ranking, tell = in_time(self._data.ranking, self.out_of_time), self._telling("choose bits")
            how = candidate.method.weight_ranges
            prepared.weight_bits.update(
                choose_weight_bits(prepared.graph, plan, self._average_bits, how, ranking, tell)
            )
        return replace(plan, weight_bits=prepared.weight_bits)

    def _prepared(self, method: PtqMethod) -> _Prepared:
        key = (method.equalization, method.identity)
        if key not in self._networks:
            tell = self._telling("scale channels")
            target = preparing_target(self._target, self._average_bits)
            graph = prepare(self._graph, method, target, self._data.ranges, self._kept, tell)
            self._networks[key] = _Prepared(graph)
        return self._networks[key]

    def _ranges(self, calibrator: str, prepared: _Prepared, layout: Layout) -> dict[str, Range]:
        """Return the range of each tensor of a layout; none is chosen twice for the same values."""
        keys = {name: (calibrator, *tensor.sources) for name, tensor in layout.tensors.items()}
        if not prepared.ranges.keys() >= set(keys.values()):
            found = find_ranges(
                calibrator,
                prepared.graph,
                layout,
                self._histograms(prepared, layout),
                self._target,
                in_time(self._data.ranking, self.out_of_time),
                percentile=self._percentile,
                on_batch=self._telling("choose ranges"),
            )
            prepared.ranges.update({keys[name]: ends for name, ends in found.items()})
        return {name: prepared.ranges[key] for name, key in keys.items()}

    def _histograms(self, prepared: _Prepared, layout: Layout) -> dict[str, Histogram]:
        """Return the histograms of a layout's tensors; with other layers in float other values may share a grid."""
        sources = {name: tensor.sources for name, tensor in layout.tensors.items()}
        if not prepared.histograms.keys() >= set(sources.values()):
            found = collect_histograms(prepared.graph, layout, self._data.ranges, self._telling("calibrate"))
            prepared.histograms.update({sources[name]: histogram for name, histogram in found.items()})
        return {name: prepared.histograms[own] for name, own in sources.items()}

    def _telling(self, step: str) -> Callable[[int], None]:
        return lambda done: self._on_progress(step, done)
