"""One pass over the calibration images collects what every calibrator reads; then each finds its ranges."""

from collections.abc import Callable, Iterable, Mapping

from torch import Tensor, fx

from repquant.choices import LOSS_AWARE
from repquant.errors import InputError
from repquant.graph.batches import first_images
from repquant.graph.layout import Layout
from repquant.graph.plan import Range
from repquant.graph.run import Batch, observe
from repquant.methods.loss_aware import IMAGES, candidate_ranges, choose_ranges
from repquant.methods.outlying_images import ImageMagnitudes, outlying_images
from repquant.numerics.histogram import Histogram
from repquant.numerics.ranges import search_range
from repquant.targets.target import Target


def collect_histograms(
    graph: fx.GraphModule,
    layout: Layout,
    batches: Iterable[Batch],
    on_batch: Callable[[int], None] = lambda _: None,
) -> dict[str, Histogram]:
    """Run a float network over batches and return a histogram of every tensor that will be rounded.

    Args:
        graph: from `capture`.
        layout: where it will be rounded.
        batches: see `graph.run.inputs_of`.
        on_batch: called with the number of images after each batch.

    Raises:
        InputError: no batch came, or a value is not finite (who reads it is named).
    """
    histograms, _ = collect_with_outliers(graph, layout, batches, on_batch)
    return histograms


def collect_with_outliers(
    graph: fx.GraphModule,
    layout: Layout,
    batches: Iterable[Batch],
    on_batch: Callable[[int], None] = lambda _: None,
) -> tuple[dict[str, Histogram], tuple[int, ...]]:
    """Return the histograms, and the places of the images that are outliers, see `methods.outlying_images`.

    The arguments and errors are those of `collect_histograms`.
    """
    histograms = {name: Histogram() for name in layout.tensors}
    magnitudes = {source: ImageMagnitudes() for tensor in layout.tensors.values() for source in tensor.sources}
    observers = {
        source: _recorder(histograms[name], magnitudes[source], tensor.description)
        for name, tensor in layout.tensors.items()
        for source in tensor.sources
    }
    sizes: list[int] = []

    def count(images: int) -> None:
        sizes.append(images)
        on_batch(images)

    observe(graph, batches, observers, count)
    return histograms, outlying_images(magnitudes, sizes)


def find_ranges(
    calibrator: str,
    graph: fx.GraphModule,
    layout: Layout,
    histograms: Mapping[str, Histogram],
    target: Target,
    batches: Iterable[Batch],
    *,
    percentile: float = 99.99,
    on_batch: Callable[[int], None] = lambda _: None,
) -> dict[str, Range]:
    """Return the range that a calibrator finds for each tensor: from the histograms, or with the network.

    Args:
        calibrator: its name.
        graph: float; the histograms are of its tensors.
        layout: where it will be rounded.
        histograms: tensor name -> histogram.
        target: the schemes.
        batches: for "loss-aware", see `methods.loss_aware`; the other calibrators do not read them.
        percentile: percentage of magnitudes that the percentile calibrator keeps.
        on_batch: called with the number of images after each batch that was read.

    Raises:
        InputError: a name that is not known, a percentile outside (0, 100], or no batches where they are needed.
    """
    if calibrator == LOSS_AWARE:
        candidates = {
            name: candidate_ranges(histograms[name], target, percentile=percentile) for name in layout.tensors
        }
        return choose_ranges(graph, layout, candidates, target, first_images(batches, IMAGES), on_batch)
    return activation_ranges(calibrator, histograms, target, percentile=percentile)


def activation_ranges(
    calibrator: str, histograms: Mapping[str, Histogram], target: Target, *, percentile: float = 99.99
) -> dict[str, Range]:
    """Return the range that a calibrator finds for each histogram on the target's activation grid."""
    return {
        name: search_range(calibrator, histogram, target.activation, percentile=percentile)
        for name, histogram in histograms.items()
    }


def _recorder(histogram: Histogram, magnitudes: ImageMagnitudes, description: str) -> Callable[[Tensor], None]:
    def record(value: Tensor) -> None:
        try:
            histogram.update(value, magnitudes.update(value) if value.numel() else None)
        except InputError as error:
            raise InputError(f"{description}: {error}") from error

    return record
