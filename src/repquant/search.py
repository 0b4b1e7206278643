"""The INT8 form of a network that loses little enough, by whichever method that takes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from repquant.errors import InputError
from repquant.graph.batches import WithoutImages, come_in_order, first_images, rereadable
from repquant.graph.devices import device_of, full_precision
from repquant.graph.interface import captured_of
from repquant.graph.layout import find_layout
from repquant.graph.run import Batch
from repquant.methods.attempts import Attempts, SearchData
from repquant.methods.default_calibrator import default_calibrator
from repquant.methods.identity import count_identities
from repquant.methods.judges import LogitsJudge, Metric, MetricJudge, Score
from repquant.methods.mixed_precision import check_average_bits
from repquant.methods.outlying_images import describe, find_outlying_images
from repquant.methods.search import Candidate, Outcome, find_best, methods
from repquant.quantize import Progress, Quantized, captured, served_here
from repquant.targets.target import Target

_RANKING_IMAGES = 64


@dataclass(frozen=True)
class Found(Quantized):
    """What a search found: a network in integers, and how it was found.

    Attributes:
        outcome: what was tried, in order, and why the search ended.
        seconds: that each of it took.
        notes: what was left out, and why.
    """

    outcome: Outcome
    seconds: tuple[float, ...]
    notes: tuple[str, ...]


def search(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    target: str | Target = "onnxruntime",
    max_drop: float = 0.1,
    evaluate: Metric | None = None,
    held_back: Iterable[Batch] | None = None,
    minutes: float = 10.0,
    keep_float: Collection[str] = (),
    percentile: float = 99.99,
    rounding_images: int = 256,
    average_bits: float | None = None,
    example: Any = None,
    on_progress: Progress = lambda _step, _done: None,
    on_attempt: Callable[[Candidate, Score, float], None] = lambda *_: None,
) -> Found:
    """Return the best INT8 form that was found, from the default method to dearer ones while the limit is not met.

    Args:
        model: as for `quantize`.
        batches: as for `quantize`.
        target: as for `quantize`.
        max_drop: what may be lost: of the metric in its own units; without one, points of top-1 as float itself expects
            them, from logits and without labels.
        evaluate: a metric such as mAP or mIoU of a callable that takes and returns what the module does; higher is
            better.
        held_back: batches to judge logits on; needed without `evaluate`, since images that were calibrated on flatter.
        minutes: to search in; the attempt under way is finished.
        keep_float: as for `quantize`.
        percentile: as for `quantize`.
        rounding_images: as for `quantize`.
        average_bits: as for `quantize`. No layer is then kept in float but those of `keep_float`.
        example: as for `quantize`.
        on_progress: as for `quantize`.
        on_attempt: called with a candidate, its score, and the seconds that it took.

    Raises:
        InputError: as `quantize`; neither a metric nor images to judge on, a limit below 0, or a metric that raises or
            returns no finite number.
    """
    if max_drop < 0 or minutes <= 0:
        raise InputError(
            f"max_drop {max_drop:g} and minutes {minutes:g} were given; allowed are 0 or more, and above 0"
        )
    schemes = served_here(target)
    if average_bits is not None:
        check_average_bits(average_bits, schemes)
    batches = rereadable(batches)
    graph = captured(model, batches, example)
    outliers = _outliers(graph, schemes, batches, keep_float)
    if outliers:
        batches = WithoutImages(batches, frozenset(outliers))
    judge: MetricJudge | LogitsJudge
    if evaluate is not None:
        judge = MetricJudge(graph, evaluate)
    elif held_back is not None:
        judge = LogitsJudge(graph, rereadable(held_back))
    else:
        raise InputError("nothing says how good a network is; give a metric as evaluate, or images as held_back")
    attempts = Attempts(
        graph,
        schemes,
        SearchData(
            ranges=batches,
            rounding=list(first_images(batches, rounding_images)),
            ranking=list(first_images(batches, _RANKING_IMAGES)),
        ),
        judge,
        keep_float=keep_float,
        percentile=percentile,
        average_bits=average_bits,
        minutes=minutes,
        on_progress=on_progress,
        on_attempt=on_attempt,
    )
    with full_precision(device_of(graph)):
        outcome = find_best(
            methods(count_identities(graph) > 0, default_calibrator(graph, schemes)),
            (attempts.learn, attempts.keep_layers),
            attempts,
            max_drop,
            attempts.out_of_time,
        )
    rounded = attempts.rounded(outcome.attempts[outcome.best][0])
    notes = (*attempts.notes, *([describe(outliers)] if outliers else []))
    return Found(rounded.graph, rounded.plan, outcome, tuple(attempts.seconds), notes, outliers=outliers)


def _outliers(
    graph: fx.GraphModule, target: Target, batches: Iterable[Batch], keep_float: Collection[str]
) -> tuple[int, ...]:
    """Return the places of the images that are left out; none where a batch can't get smaller."""
    if not captured_of(graph).dynamic_batch:
        return ()
    with full_precision(device_of(graph)):
        found = find_outlying_images(graph, find_layout(graph, target, keep_float), batches)
    return found if found and come_in_order(batches) else ()
