"""The figures of an analysis, as PNG and SVG. Nothing needs a display."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from repquant.methods.sensitivity import LayerSensitivity, Sensitivity, StepHistogram

# Told apart by color-blind readers too (Okabe and Ito).
_BLUE, _ORANGE, _GRAY = "#0072B2", "#D55E00", "#666666"
_INCHES_A_LAYER = 0.24
_WIDTHS = (6.4, 40.0)  # inches, smallest and largest
_PNG_DPI = 150

CAPTIONS = {
    "range": "Largest weight of an output channel over the standard deviation of its other weights",
    "kl": "KL to float by layers",
    "weights": "Weights of one layer in steps of its integer grid",
}
"""What each figure shows, by the name of its file."""


def write_figures(sensitivity: Sensitivity, folder: Path) -> tuple[str, ...]:
    """Write `range`, `kl` and, where an identity branch may sit, `weights`, each as .png and .svg.

    Returns:
        The names of the figures written, keys of `CAPTIONS`.
    """
    figures = {"range": range_figure(sensitivity.layers), "kl": kl_figure(sensitivity)}
    if sensitivity.histogram is not None:
        figures["weights"] = weights_figure(sensitivity.histogram)
    # Without date and with fixed ids the same figures are the same bytes.
    with matplotlib.rc_context({"svg.hashsalt": "repquant"}):
        for name, figure in figures.items():
            figure.savefig(folder / f"{name}.png", dpi=_PNG_DPI)
            figure.set_layout_engine("none")  # stays as it is: to lay it out takes as long as to draw it
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    return tuple(figures)


def range_figure(layers: Sequence[LayerSensitivity]) -> Figure:
    """Draw the range over sigma of each layer with weights that vary: median as a bar, largest channel as a tick."""
    shown = [layer for layer in layers if layer.range_over_sigma is not None]
    figure, axes = _layer_axes([layer.name for layer in shown], rows=1)
    for label, color, identity in (("may hold an identity branch", _ORANGE, True), ("other layers", _BLUE, False)):
        places = [place for place, layer in enumerate(shown) if layer.may_hold_identity is identity]
        medians = [shown[place].range_over_sigma or 0.0 for place in places]
        if places:
            axes[0].bar(places, medians, color=color, label=f"{label}, median of channels")
    largest = [layer.range_over_sigma_max or 0.0 for layer in shown]
    axes[0].plot(range(len(shown)), largest, "_", color="black", label="largest channel")
    axes[0].set_yscale("log")
    axes[0].set_ylim(bottom=1, top=2 * max([10.0, *largest]))
    axes[0].set_ylabel("max |w| / sigma of the others")
    axes[0].legend(fontsize="small", loc="upper left")
    return figure


def kl_figure(sensitivity: Sensitivity) -> Figure:
    """Draw the KL with only each layer quantized, and below with all but it, beside that of the whole."""
    layers, whole = sensitivity.layers, 1000 * sensitivity.both.harm
    figure, (only, all_but) = _layer_axes([layer.name for layer in layers], rows=2)
    only.bar(range(len(layers)), [1000 * layer.only.harm for layer in layers], color=_BLUE)
    only.set_title("only this layer quantized", fontsize="medium")
    all_but.bar(range(len(layers)), [1000 * layer.all_but.harm for layer in layers], color=_ORANGE)
    all_but.axhline(whole, color=_GRAY, linestyle="--", label=f"everything quantized: {whole:.2f}")
    all_but.set_title("everything but this layer quantized", fontsize="medium")
    all_but.legend(fontsize="small", loc="lower right")
    for axes in (only, all_but):
        axes.set_ylabel("KL x 1000")
    return figure


def weights_figure(histogram: StepHistogram) -> Figure:
    """Draw how often each integer occurs in one layer, the diagonal in front of the others."""
    figure = Figure(figsize=(_WIDTHS[0], 3.6), layout="constrained")
    axes = figure.add_subplot()
    steps = np.arange(len(histogram.others)) + histogram.first
    others = np.asarray(histogram.others)
    sigma = np.sqrt(np.average((steps - np.average(steps, weights=others)) ** 2, weights=others)) if others.any() else 0
    for counts, color, label in (
        (histogram.others, _BLUE, f"other weights, sigma {sigma:.1f} steps"),
        (histogram.diagonal, _ORANGE, "diagonal center, where the identity lands"),
    ):
        axes.stairs(counts, np.append(steps, steps[-1] + 1) - 0.5, fill=True, color=color, label=label)
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.7)
    axes.set_xlabel("weight in steps of its output channel's grid")
    axes.set_ylabel("weights")
    axes.set_title(histogram.layer, fontsize="medium")
    axes.legend(fontsize="small", loc="upper left")
    return figure


def _layer_axes(names: Sequence[str], rows: int) -> tuple[Figure, list[Axes]]:
    """Return axes above each other with a place for each layer; the lowest one names them."""
    width = min(max(_WIDTHS[0], _INCHES_A_LAYER * len(names)), _WIDTHS[1])
    figure = Figure(figsize=(width, 2.2 * rows + 1.6), layout="constrained")
    axes = [figure.add_subplot(rows, 1, row + 1) for row in range(rows)]
    for row, each in enumerate(axes):
        is_lowest = row == rows - 1
        each.set_xticks(range(len(names)), names if is_lowest else [""] * len(names), rotation=90, fontsize=7)
        each.set_xlim(-0.7, max(len(names), 1) - 0.3)
    return figure, axes
