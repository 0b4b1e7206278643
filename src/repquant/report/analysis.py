"""An analysis of where quantization loses: its JSON schema, what it means, and its tables."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from rich.box import SIMPLE_HEAD
from rich.table import Table

from repquant.methods.sensitivity import LayerSensitivity, Sensitivity
from repquant.report.reading import parsed, read_file, write_text
from repquant.report.record import CalibrationRecord

SCHEMA_VERSION = 1

MOST = 0.5
"""A share that is called most of the whole."""
_NONE = "-"


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """Everything an analysis was given and everything it measured.

    Attributes:
        output: the folder that it wrote, as it was given.
        config: the resolved configuration.
        inputs: role -> SHA-256 of the file, for example "weights".
        environment: as `bench.environment` gives it.
        calibration: the images that the ranges came from.
        seconds: of the comparison, without calibration.
        sensitivity: what was measured.
        advice: what to do next, in one sentence.
        notes: sentences for the reader.
        skipped: unreadable images that were left out -> the reason.
        schema_version: of this layout; a program refuses the ones that it does not know.
    """

    output: str
    config: dict[str, Any]
    inputs: dict[str, str]
    environment: dict[str, Any]
    calibration: CalibrationRecord
    seconds: float
    sensitivity: Sensitivity
    advice: str
    notes: tuple[str, ...] = ()
    skipped: dict[str, str] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> str:
        """Return the analysis as strict JSON, indented."""
        return json.dumps(asdict(self), allow_nan=False, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the analysis that `to_json` wrote.

        Raises:
            ValueError: the text is not JSON, has another schema version, or fields that do not fit.
        """
        return parsed(cls, text, SCHEMA_VERSION)


def write_analysis(analysis: Analysis, path: Path) -> None:
    """Write the analysis to `path` as JSON, whole or not at all.

    Raises:
        InputError: the folder of `path` does not exist or can't be written.
    """
    write_text(analysis.to_json(), path)


def read_analysis(path: Path) -> Analysis:
    """Read an analysis that `write_analysis` wrote.

    Raises:
        InputError: there is no such file, or it is not an analysis that this version reads.
    """
    return read_file(path, Analysis.from_json, "an analysis", "the analysis.json of a run")


# What it means


def weights_share(sensitivity: Sensitivity) -> float | None:
    """Return the weights' part, 0 to 1, of the KL that weights and activations cause each by itself."""
    total = sensitivity.weights.harm + sensitivity.activations.harm
    return sensitivity.weights.harm / total if total > 0 else None


def recovered_share(sensitivity: Sensitivity, layer: LayerSensitivity) -> float:
    """Return the part of the whole KL that goes away when this layer stays in float; below 0 where it grows."""
    whole = sensitivity.both.harm
    return (whole - layer.all_but.harm) / whole if whole > 0 else 0.0


def ruled_by_diagonal(sensitivity: Sensitivity) -> tuple[str, ...]:
    """Return the layers in which the diagonal is the largest weight of most output channels."""
    return tuple(layer.name for layer in sensitivity.layers if (layer.diagonal_share or 0.0) > MOST)


def worst_layer(sensitivity: Sensitivity) -> LayerSensitivity | None:
    """Return the layer with weights whose absence from the quantized network helps most."""
    layers = [layer for layer in sensitivity.layers if layer.has_weights]
    return min(layers, key=lambda layer: layer.all_but.harm, default=None)


def remarks(sensitivity: Sensitivity) -> tuple[str, ...]:
    """Return what a reader may wonder about: figures that are missing from the tables, and why."""
    found = []
    if not any(layer.may_hold_identity for layer in sensitivity.layers):
        found.append("no layer has the shape of one with an identity branch: there is no diagonal to look at")
    constant = [layer.name for layer in sensitivity.layers if layer.has_weights and layer.range_over_sigma is None]
    if constant:
        found.append(f"no range over sigma where the weights of a channel do not vary: {', '.join(constant)}")
    return tuple(found)


def headline(analysis: Analysis) -> dict[str, Any]:
    """Return the figures that an analysis ends with on stdout, ready for strict JSON, to six significant digits."""
    measured = analysis.sensitivity
    worst, share = worst_layer(measured), weights_share(measured)
    return {
        "output": analysis.output,
        "images": measured.images,
        "skipped": len(analysis.skipped),
        "kl": _six_digits(measured.both.kl),
        "kl_weights": _six_digits(measured.weights.kl),
        "kl_activations": _six_digits(measured.activations.kl),
        "agreement": _six_digits(measured.both.agreement),
        "weights_share": None if share is None else _six_digits(share),
        "layers": len(measured.layers),
        "identity_layers": sum(layer.may_hold_identity for layer in measured.layers),
        "diagonal_layers": len(ruled_by_diagonal(measured)),
        "worst_layer": None if worst is None else worst.name,
        "worst_layer_share": None if worst is None else _six_digits(recovered_share(measured, worst)),
        "seconds": _six_digits(analysis.seconds),
        "advice": analysis.advice,
    }


# Its tables


@dataclass(frozen=True)
class _Column:
    """A figure of each layer: its heading in two lines, and its text."""

    heading: str
    text: Callable[[LayerSensitivity], str]


_LAYER_COLUMNS = (
    _Column("max/\nsigma", lambda layer: _number(layer.range_over_sigma, 1)),
    _Column("largest\n", lambda layer: _number(layer.range_over_sigma_max, 1)),
    _Column("diag\n%", lambda layer: _number(layer.diagonal_share, 0, factor=100)),
    _Column("diag/\nrest", lambda layer: _number(layer.diagonal_ratio, 1)),
    _Column("SQNR\nw dB", lambda layer: _number(layer.weight_sqnr_db, 1)),
    _Column("SQNR\nx dB", lambda layer: _number(layer.input_sqnr_db, 1)),
    _Column("KL\nonly", lambda layer: _number(layer.only.kl, 3, factor=1000)),
    _Column("agree\nonly", lambda layer: _number(layer.only.agreement, 1)),
    _Column("KL\nw/o", lambda layer: _number(layer.all_but.kl, 3, factor=1000)),
    _Column("agree\nw/o", lambda layer: _number(layer.all_but.agreement, 1)),
)
LEGEND = (
    "max/sigma: largest weight of an output channel over the standard deviation of its others, median over channels; "
    "largest: the largest such ratio",
    "diag %: output channels whose largest weight is the diagonal, where an identity branch lands; diag/rest: the "
    "diagonal over the largest other weight, median over channels",
    "SQNR: of the quantized weights (w) and of the quantized input (x)",
    "KL (x 1000, nats) and agreement (%) to float: with only this layer quantized, and with all but this one (w/o)",
)
"""What the columns of the layers' table mean."""


def whole_table(analysis: Analysis) -> Table:
    """Return what the parts of quantization cost together, for a terminal."""
    return _screen(("", "KL\nx1000", "agree\n%"), _whole_rows(analysis.sensitivity))


def layer_table(analysis: Analysis) -> Table:
    """Return the layers' figures for a terminal."""
    headings = ("", *(column.heading for column in _LAYER_COLUMNS))
    return _screen(headings, _layer_rows(analysis.sensitivity))


def markdown_page(analysis: Analysis, figures: Sequence[tuple[str, str]] = ()) -> str:
    """Return the analysis as a page.

    Args:
        analysis: what was measured.
        figures: (file beside the page, caption) of each figure.
    """
    measured = analysis.sensitivity
    headings = ("layer", *(" ".join(column.heading.split()) for column in _LAYER_COLUMNS))
    parts = [
        "# Where quantization loses",
        analysis.advice,
        _markdown(("quantized", "KL x1000", "agree %"), _whole_rows(measured)),
        _markdown(headings, _layer_rows(measured)),
        "\n".join(f"- {line}" for line in (*LEGEND, *_circumstances(analysis))),
        *(f"![{caption}]({file})" for file, caption in figures),
    ]
    return "\n\n".join(parts) + "\n"


def _whole_rows(sensitivity: Sensitivity) -> list[tuple[str, ...]]:
    parts = {
        "weights only": sensitivity.weights,
        "activations only": sensitivity.activations,
        "both": sensitivity.both,
    }
    return [(name, _number(part.kl, 3, factor=1000), _number(part.agreement, 1)) for name, part in parts.items()]


def _layer_rows(sensitivity: Sensitivity) -> list[tuple[str, ...]]:
    return [(layer.name, *(column.text(layer) for column in _LAYER_COLUMNS)) for layer in sensitivity.layers]


def _circumstances(analysis: Analysis) -> list[str]:
    images = f"{analysis.sensitivity.images:,} images analyzed, {analysis.calibration.images:,} for calibration"
    skipped = f", {len(analysis.skipped):,} unreadable skipped" if analysis.skipped else ""
    facts = analysis.environment
    packages = {"repquant": facts["repquant"], "python": facts["python"], **facts["packages"]}
    versions = ", ".join(f"{name} {version}" for name, version in packages.items() if version is not None)
    machine = f"{facts['cpu'] or facts['machine']}, {facts['cores']} cores; {versions}"
    return [f"{images} (seed {analysis.calibration.seed}){skipped}", machine, *analysis.notes]


def _screen(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=0, show_edge=False, pad_edge=False)
    table.add_column(headings[0], no_wrap=True)
    for heading in headings[1:]:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def _markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *("---:" for _ in headings[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, rule, *rows))


def _number(value: float | None, digits: int, factor: float = 1.0) -> str:
    return _NONE if value is None else f"{value * factor:.{digits}f}"


def _six_digits(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")
