"""Tables and figures of what `qat_evidence.py` measured."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

Row = dict[str, Any]

# Told apart by color-blind readers too (Okabe and Ito).
STYLES = {
    "plain": ("#0072B2", "o"),
    "equivalent-kernel": ("#009E73", "s"),
    "branches as trained": ("#D55E00", "^"),
    "inserted-bn": ("#666666", "x"),
}
COLORS = ("#0072B2", "#D55E00", "#009E73", "#666666", "#CC79A7")
SETTINGS = (("W8A8", "sgd"), ("W8A8", "adamw"), ("W4A8", "sgd"), ("W4A8", "adamw"))
WORDS: dict[str, Callable[[Any], str]] = {
    "method": str,
    "rate": lambda value: f"lr {value:g}",
    "augmentation": str,
    "batch_size": lambda value: f"batch {value}" if value else "",
    "frozen_after": lambda value: {0.0: "frozen from the start", 0.5: "frozen half-way", 1.0: "never frozen"}[value],
    "statistics_images": lambda value: f"statistics of {value or 'all'} images",
}


def markdown(rows: Sequence[Row], environment: dict[str, Any]) -> str:
    """Return the page of all rows, a section for each network."""
    networks = dict.fromkeys(row["network"] for row in rows)
    parts = ["# Quantization-aware training from the inside\n", HEAD]
    for network in networks:
        parts += [f"## {network}\n", *sections([row for row in rows if row["network"] == network])]
    packages = ", ".join(f"{name} {environment['packages'][name]}" for name in ("torch", "numpy"))
    flags = ", ".join(environment["cpu_int8_flags"]) or "no int8 dot product"
    parts.append(
        f"{environment['cpu']} ({flags}), {environment['cores']} cores, {environment['torch_threads']} thread; "
        f"repquant {environment['repquant']}, python {environment['python']}, {packages}. Other work ran on the "
        "machine: seconds are an upper bound.\n"
    )
    return "\n".join(parts)


HEAD = """Written by `benchmarks/qat_evidence.py`; another network has `--arch`, `--weights`, `--data`, `--steps`:

    OMP_NUM_THREADS=1 python benchmarks/qat_evidence.py --json results/qat-evidence.json \\
      --markdown results/qat-evidence.md --figures docs/figures

Target `tensorrt`, all layers. Every run starts from the same integers, those of `repquant ptq`, from 512 calibration
images. KL (x 1000) and agreement are to the float model, on training images that are held back from calibration and
training, simulated; only the table of the validation split is measured there. A learning rate falls to 0 along a
cosine. Weight scales are those of the start, for inserted-bn the maximum in each step.

Max is the largest KL at a reading. Not rounded: KL of the trained network without its quantizers. Moved: weights whose
integer is another one than at the start. Oscillating: weights whose integer turned back within the last 69 steps (Nagel
et al., 2022). Step: ||change of the kernel|| / ||kernel|| in one step, mean over the run, median over the layers.
"""


def sections(rows: Sequence[Row]) -> list[str]:
    groups = dict.fromkeys(row["group"] for row in rows)
    parts = []
    for group in groups:
        chosen = [row for row in rows if row["group"] == group]
        parts += [f"### {group.capitalize()}\n", outcome_table(chosen)]
        if group == "methods":
            parts += ["### Layers, W8A8, SGD\n", LAYERS, gain_table(chosen), "### Branches\n", BRANCHES]
            parts += [gradient_table(chosen), "### Ranges\n", RANGES, range_table(chosen)]
        elif group.startswith("inserted-bn"):
            parts += [f"### {group.capitalize()}: the statistics\n", STATISTICS, drift_table(chosen)]
    if any(row["validation"] for row in rows):
        parts += ["### Validation split\n", validation_table([row for row in rows if row["validation"]])]
    return parts


LAYERS = """How many times lr x gradient the first step of SGD moves the kernel: its center / the rest (the linear layer
is no block), and the step, mean over the run, in millionths of the kernel's norm.
"""
BRANCHES = """Norm of the gradient, mean over the run, in thousandths (W8A8, SGD). equivalent-kernel /
branches as trained.
"""
RANGES = """Mean over the channels of max |w|; median over the channels of max |w| over the standard deviation of the
other weights: start -> end (W4A8, AdamW).
"""
STATISTICS = """Means over the channels of the worst layer, at the end: distance of the running mean from the one at the
start, in standard deviations; relative change of the running variance; relative distance of a batch's variance from the
running one (mean of the steps with moving statistics). Then the largest t = gamma / sqrt(var + eps) of any channel at a
reading, 1 at the start, and the channels with a variance below 1e-3.
"""


def outcome_table(rows: Sequence[Row]) -> str:
    head = "| | KL start | max | end | not rounded | agree % | moved % | oscillating % | step x 1e6 | s |"
    lines = [head, "| --- |" + " ---: |" * 9]
    for row in rows:
        steps, last = [value for value in row["mean"]["step"] if value is not None], row["end"]
        lines.append(
            f"| {title(row, rows[0])} | {number(row['kl'][0])} | {number(largest(row))} | {number(row['kl'][-1])} | "
            f"{number(row['kl_unrounded'])} | {row['agreement'][-1]:.1f} | {100 * fmean(last['moved']):.2f} | "
            f"{100 * fmean(last['oscillating']):.2f} | "
            f"{1e6 * median(steps):.3g} | {row['seconds']} |"
        )
    return "\n".join(lines) + "\n"


def gain_table(rows: Sequence[Row]) -> str:
    chosen = by_method(rows, "W8A8", "sgd")
    names = [name for name in chosen if name != "inserted-bn"]
    heads = [f"{name}: center / rest | step x 1e6" for name in names]
    lines = [f"| layer | {' | '.join(heads)} |", "| --- |" + " ---: |" * 2 * len(names)]
    for place, layer in enumerate(chosen[names[0]]["layers"]):
        cells = []
        for name in names:
            first = chosen[name]["mean"]
            parts = [first[key][place] for key in ("gain_center", "gain_around")]
            known = [f"{value:.3g}" for value in parts if value is not None]
            cells += [" / ".join(known) or f"{first['gain'][place]:.3g}"]
            cells += [f"{1e6 * (first['step'][place] or 0):.3g}"]
        lines.append(f"| {layer} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def gradient_table(rows: Sequence[Row]) -> str:
    chosen = by_method(rows, "W8A8", "sgd")
    pair = [chosen[name] for name in ("equivalent-kernel", "branches as trained")]
    kinds = [("gradient", "equivalent kernel")]
    kinds += [(name, name.removeprefix("gradient ")) for name in pair[0]["mean"] if name.startswith("gradient ")]
    lines = [f"| layer | {' | '.join(word for _, word in kinds)} |", "| --- |" + " ---: |" * len(kinds)]
    for place, layer in enumerate(pair[0]["layers"]):
        cells = []
        for key, _ in kinds:
            values = [row["mean"][key][place] for row in pair]
            cells.append(" / ".join("-" if value is None else f"{1000 * value:.3g}" for value in values))
        lines.append(f"| {layer} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def range_table(rows: Sequence[Row]) -> str:
    chosen = by_method(rows, "W4A8", "adamw")
    lines = [f"| layer | {' | '.join(chosen)} |", "| --- |" + " ---: |" * len(chosen)]
    layers = next(iter(chosen.values()))["layers"]
    for place, layer in enumerate(layers):
        cells = []
        for row in chosen.values():
            first, last = row["start"], row["end"]
            spread = [f"{part['range_over_sigma'][place]:.3g}" for part in (first, last)]
            size = [f"{part['range'][place]:.3g}" for part in (first, last)]
            cells.append(f"{' -> '.join(size)}; {' -> '.join(spread)}")
        lines.append(f"| {layer} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def drift_table(rows: Sequence[Row]) -> str:
    heads = ("mean, sigmas", "variance", "batch", "largest t", "variance < 1e-3")
    lines = [f"| | KL end | {' | '.join(heads)} |", "| --- |" + " ---: |" * (1 + len(heads))]
    for row in rows:
        if row["method"] == "inserted-bn":
            last, gaps = row["end"], row["mean"].get("batch_gap", [])
            cells = [number(top(last["mean_drift"])), number(top(last["variance_drift"])), number(top(gaps))]
            cells += [number(top(row["curves"]["largest_t"]))]
            cells += [f"{100 * (top(last['nearly_dead']) or 0):.0f} %"]
            lines.append(f"| {title(row, rows[0])} | {number(row['kl'][-1])} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def validation_table(rows: Sequence[Row]) -> str:
    lines = ["| | top-1 % | drop [95 %] | agree % | KL x 1000 |", "| --- |" + " ---: |" * 4]
    for row in rows:
        result = row["validation"]
        low, high = result["drop_ci95"]
        name = title(row, None) if row["group"] == "methods" else f"{title(row, None)}, {row['loss']}"
        lines.append(
            f"| {name} | {result['top1']:.2f} | {result['drop']:.2f} [{low:.2f}, {high:.2f}] | "
            f"{result['agreement']:.2f} | {1000 * result['kl']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def title(row: Row, first: Row | None) -> str:
    """Name a row by its settings, or by what differs from the first of its group."""
    if not row["group"].startswith("inserted-bn"):
        words = [row["method"], row["bits"], f"{row['optimizer']} {row['rate']:g}"]
        return ", ".join([*words, f"seed {row['seed']}"] if row["seed"] else words)
    names = [name for name in WORDS if first is None or row[name] != first[name]]
    if row["method"] != "inserted-bn":
        names = [name for name in names if name not in ("frozen_after", "statistics_images")]
    words = [word for name in names if (word := WORDS[name](row[name]))]
    return ", ".join(words) or ", ".join(word for name in WORDS if (word := WORDS[name](row[name])))


def write_figures(rows: Sequence[Row], folder: Path) -> None:
    """Write the figures of the first network in the rows as SVG."""
    rows = [row for row in rows if row["network"] == rows[0]["network"]]
    methods = [row for row in rows if row["group"] == "methods"]
    bn = [row for row in rows if row["method"] == "inserted-bn" and row["group"] == "inserted-bn, distillation"]
    figures = {"qat_kl": kl_figure(methods), "qat_step": step_figure(methods)}
    figures |= {"qat_bn_drift": drift_figure(bn), "qat_oscillation": oscillation_figure(methods)}
    # Without date and with fixed ids the same figures are the same bytes; text as text keeps them small.
    with matplotlib.rc_context({"svg.hashsalt": "repquant", "svg.fonttype": "none"}):
        for name, figure in figures.items():
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})


def kl_figure(rows: Sequence[Row]) -> Figure:
    figure, panels = panels_of(2, 2)
    for axes, (bits, optimizer) in zip(panels, SETTINGS, strict=True):
        for method, row in by_method(rows, bits, optimizer).items():
            draw_curve(axes, method, row["steps"], row["kl"])
        axes.set_title(f"{bits}, {optimizer} {row['rate']:g}", fontsize="medium")
        logarithmic(axes)
        axes.set_ylabel("KL x 1000")
        axes.set_xlabel("step")
    panels[0].legend(fontsize="small")
    return figure


def step_figure(rows: Sequence[Row]) -> Figure:
    figure, (axes,) = panels_of(1, 1)
    for method, row in by_method(rows, "W8A8", "sgd").items():
        steps = row["mean"]["step"]
        color, marker = STYLES[method]
        axes.plot(range(len(steps)), steps, marker, color=color, label=method)
    axes.set_xticks(range(len(row["layers"])), row["layers"], rotation=90, fontsize=7)
    axes.set_yscale("log")
    axes.set_ylabel("||change|| / ||kernel||, a step")
    axes.set_title("W8A8, SGD, the same learning rate", fontsize="medium")
    figure.legend(*axes.get_legend_handles_labels(), fontsize="small", loc="outside right upper")
    return figure


def oscillation_figure(rows: Sequence[Row]) -> Figure:
    figure, panels = panels_of(1, 2)
    for axes, (bits, optimizer) in zip(panels, (("W4A8", "sgd"), ("W4A8", "adamw")), strict=True):
        for method, row in by_method(rows, bits, optimizer).items():
            draw_curve(axes, method, row["steps"], [100 * value for value in row["curves"]["oscillating"]])
        axes.set_title(f"{bits}, {optimizer} {row['rate']:g}", fontsize="medium")
        axes.set_xlabel("step")
    panels[0].set_ylabel("weights that oscillate, %")
    panels[0].legend(fontsize="small")
    return figure


def drift_figure(rows: Sequence[Row]) -> Figure:
    figure, panels = panels_of(1, 2)
    shown = [row for row in rows if row is rows[0] or (row["rate"] == 1e-3 and row["frozen_after"] in (0, 1))]
    for color, row in zip(COLORS, shown, strict=False):
        label = title(row, rows[0]) if row is not rows[0] else "frozen half-way"
        for axes, values in zip(panels, (row["curves"]["variance_drift"], row["kl"]), strict=True):
            axes.plot(row["steps"], values, "o-", color=color, markersize=3, label=label)
    for axes, name in zip(panels, ("change of the variance, worst layer", "KL x 1000"), strict=True):
        axes.set_ylabel(name)
        axes.set_xlabel("step")
    logarithmic(panels[1])
    figure.legend(*panels[0].get_legend_handles_labels(), fontsize="small", loc="outside lower center", ncols=3)
    return figure


def logarithmic(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.yaxis.set_minor_locator(NullLocator())


def panels_of(rows: int, columns: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(8, 1 + 2.6 * rows), layout="constrained")
    return figure, [figure.add_subplot(rows, columns, place + 1) for place in range(rows * columns)]


def draw_curve(axes: Axes, method: str, x: Sequence[float], y: Sequence[float | None]) -> None:
    color, marker = STYLES[method]
    axes.plot(
        x, [float("nan") if value is None else value for value in y], marker=marker, color=color, label=method, ms=3
    )


def by_method(rows: Sequence[Row], bits: str, optimizer: str) -> dict[str, Row]:
    """Return the runs of one setting with seed 0."""
    chosen = [row for row in rows if (row["bits"], row["optimizer"], row["seed"]) == (bits, optimizer, 0)]
    return {row["method"]: row for row in chosen}


def largest(row: Row) -> float | None:
    return None if None in row["kl"] else max(row["kl"])


def top(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
