"""What the drawings of a page show, in units of their drawing area; the templates turn it into SVG."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log10, sqrt

from repquant.methods.sensitivity import GridHistogram, LayerSensitivity, Sensitivity, StepHistogram
from repquant.report.rows import Row
from repquant.report.scales import Scale

HEIGHT = 100.0
"""Of every drawing area that is stretched to its place on the page."""
INTERVAL_WIDTH = 160.0

_GAP = 0.2  # between bars that are one unit wide


@dataclass(frozen=True, kw_only=True)
class Interval:
    """The drop of a model and its 95 % interval, on the scale that all of a table share.

    Attributes:
        low, high, point: of the interval and of the drop.
        zero: where nothing is lost.
    """

    low: float
    high: float
    point: float
    zero: float


def intervals(rows: Sequence[Row]) -> list[Interval | None]:
    """Return the interval of each row, None for a row without."""
    ends = [end for row in rows if row.drop_ci95 is not None for end in row.drop_ci95]
    margin = 0.04 * INTERVAL_WIDTH
    scale = Scale(low=min([0.0, *ends]), high=max([0.0, *ends]), start=margin, end=INTERVAL_WIDTH - margin)
    return [
        None
        if row.drop is None or row.drop_ci95 is None
        else Interval(low=scale(row.drop_ci95[0]), high=scale(row.drop_ci95[1]), point=scale(row.drop), zero=scale(0.0))
        for row in rows
    ]


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A bar that stands on the ground.

    Attributes:
        x, width: its place from the left.
        y, height: its place from the top.
        layer: its number.
        text: what it says.
    """

    x: float
    width: float
    y: float
    height: float
    layer: int
    text: str


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A figure of every layer, in the order of computing.

    Attributes:
        title: what is drawn.
        name: the same in a word or two.
        color: name of a color of the page.
        top: the largest value, as a text; the ground is `bottom`.
        bars: of the layers that have the figure.
        line: height of what all layers together have, from the top; None where there is no such thing.
        line_text: what the line says.
    """

    title: str
    name: str
    color: str
    top: str
    bottom: str
    bars: tuple[Bar, ...]
    line: float | None = None
    line_text: str = ""


def profiles(sensitivity: Sensitivity) -> list[Profile]:
    """Return the figures that are drawn of every layer."""
    layers, whole = sensitivity.layers, 1000 * sensitivity.both.harm
    found = [
        _profile(
            "Range over sigma of the weights",
            "range/sigma",
            "weights",
            layers,
            lambda layer: layer.range_over_sigma,
            ground=1.0,
        ),
        _profile(
            "SQNR of the weights, dB: short is bad",
            "weight SQNR",
            "weights",
            layers,
            lambda layer: layer.weight_sqnr_db,
        ),
        _profile(
            "SQNR of the input, dB: short is bad",
            "input SQNR",
            "activations",
            layers,
            lambda layer: layer.input_sqnr_db,
        ),
        _profile(
            "KL x 1000 with only this layer in INT8", "only", "only", layers, lambda layer: 1000 * layer.only.harm, 2
        ),
        _profile(
            "KL x 1000 with all but this layer in INT8",
            "all but",
            "spared",
            layers,
            lambda layer: 1000 * layer.all_but.harm,
            2,
            whole,
        ),
    ]
    return [profile for profile in found if profile.bars]


def _profile(
    title: str,
    name: str,
    color: str,
    layers: Sequence[LayerSensitivity],
    figure: Callable[[LayerSensitivity], float | None],
    digits: int = 1,
    whole: float | None = None,
    *,
    ground: float | None = None,
) -> Profile:
    """Draw a figure of the layers; with a `ground` above 0 on a logarithmic scale from there."""
    values = {place: value for place, layer in enumerate(layers) if (value := figure(layer)) is not None}
    highest = max([*values.values(), whole or 0.0], default=0.0)
    low = ground or 0.0
    scale = Scale(low=low, high=max(highest, low), start=HEIGHT, end=0.0, is_log=ground is not None)
    bars = tuple(
        Bar(
            x=place + _GAP / 2,
            width=1 - _GAP,
            y=scale(value) if highest > low else HEIGHT,
            height=round(HEIGHT - scale(value), 2) if highest > low else 0.0,
            layer=place,
            text=f"{layers[place].name}: {value:.{digits}f}",
        )
        for place, value in values.items()
    )
    return Profile(
        title=title + (", logarithmic" if ground else ""),
        name=name,
        color=color,
        top=f"{highest:.{digits}f}",
        bottom=f"{low:g}",
        bars=bars,
        line=None if whole is None else scale(whole),
        line_text="" if whole is None else f"everything in INT8: {whole:.{digits}f}",
    )


@dataclass(frozen=True, kw_only=True)
class Outline:
    """How often each integer of a grid occurs, as the outline of columns; heights are logarithmic.

    Attributes:
        path: of the outline, one unit a column.
        color: name of a color of the page.
        text: what it says.
    """

    path: str
    color: str
    text: str


@dataclass(frozen=True, kw_only=True)
class GridChart:
    """Outlines over one grid.

    Attributes:
        title: what is drawn.
        first, last: the grid's ends.
        outlines: from back to front.
        largest: the largest count.
    """

    title: str
    first: int
    last: int
    outlines: tuple[Outline, ...]
    largest: int

    @property
    def width(self) -> int:
        """Columns of the drawing."""
        return self.last - self.first + 1

    @property
    def zero(self) -> float:
        """Where the middle of the column of zero is."""
        return 0.5 - self.first


def grid_charts(histogram: GridHistogram) -> tuple[GridChart, GridChart]:
    """Return how the weights of a layer and what it reads fall on their grids."""
    weights, inputs = histogram.weights, histogram.inputs
    weight_text = f"standard deviation {_spread(weights, histogram.weight_first):.1f} steps"
    clipped, total = histogram.clipped_below + histogram.clipped_above, sum(inputs)
    input_text = f"{100 * clipped / total if total else 0.0:.3g} % of the values clipped"
    return (
        _grid_chart("Weights", histogram.weight_first, (weights, "weights", weight_text)),
        _grid_chart("Input", histogram.input_first, (inputs, "activations", input_text)),
    )


def diagonal_chart(histogram: StepHistogram) -> GridChart:
    """Return the weights of a layer, those where an identity branch lands in front of the others."""
    others = f"other weights, standard deviation {_spread(histogram.others, histogram.first):.1f} steps"
    return _grid_chart(
        "Weights",
        histogram.first,
        (histogram.others, "weights", others),
        (histogram.diagonal, "activations", "the diagonal, where the identity branch lands"),
    )


def _grid_chart(title: str, first: int, *parts: tuple[Sequence[int], str, str]) -> GridChart:
    largest = max(max(counts, default=0) for counts, _, _ in parts)
    outlines = tuple(Outline(path=_path(counts, largest), color=color, text=text) for counts, color, text in parts)
    size = max(len(counts) for counts, _, _ in parts)
    return GridChart(title=title, first=first, last=first + size - 1, outlines=outlines, largest=largest)


def _path(counts: Sequence[int], largest: int) -> str:
    """Return an outline that starts and ends on the ground; a single occurrence is a tenth of the largest or more."""
    top = 1 + log10(max(largest, 1))
    heights = [0.0 if count <= 0 else (1 + log10(count)) / top for count in counts]
    steps = "".join(f"V{HEIGHT * (1 - height):.4g}h1" for height in heights)
    return f"M0 {HEIGHT:g}{steps}V{HEIGHT:g}Z"


def _spread(counts: Sequence[int], first: int) -> float:
    total = sum(counts)
    if total == 0:
        return 0.0
    mean = sum(count * (first + place) for place, count in enumerate(counts)) / total
    return sqrt(sum(count * (first + place - mean) ** 2 for place, count in enumerate(counts)) / total)
