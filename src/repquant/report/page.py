"""The page of one run or several: one HTML file that needs no other file, no network and no script."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from repquant.evaluate.compare import STEP_EDGES
from repquant.methods.sensitivity import Sensitivity
from repquant.report.analysis import recovered_share
from repquant.report.charts import (
    HEIGHT,
    INTERVAL_WIDTH,
    GridChart,
    Interval,
    Profile,
    diagonal_chart,
    grid_charts,
    intervals,
    profiles,
)
from repquant.report.latency_chart import latency_chart
from repquant.report.record import DisagreementRecord
from repquant.report.rows import Row
from repquant.report.run import Run
from repquant.report.thumbnails import CALIBRATION, EVALUATION
from repquant.report.verdict import MINUS, TREATMENT, Verdict, signed, verdict

_TEMPLATES = Path(__file__).parent / "templates"
_NONE = "\N{EN DASH}"


def html(runs: Sequence[Run]) -> str:
    """Return the page.

    Args:
        runs: at least one; their names differ.
    """
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "signed": signed}
    style, script = (_compact((_TEMPLATES / name).read_text(encoding="utf-8")) for name in ("page.css", "page.js"))
    page = environment.get_template("page.html").render(
        views=_views(runs),
        several=len(runs) > 1,
        metric=any(row.metric is not None for run in runs if run.record for row in run.record.rows),
        latency=latency_chart(runs),
        settings=settings(runs),
        bins=bins(),
        height=HEIGHT,
        interval_width=INTERVAL_WIDTH,
        style=Markup(style),
        script=Markup(script),
        # Whatever a record holds, a browser loads nothing and runs nothing but these two.
        policy=f"default-src 'none'; img-src data:; style-src {_source(style)}; script-src {_source(script)}; "
        "base-uri 'none'; form-action 'none'",
    )
    return _compact(page) + "\n"


@dataclass(frozen=True, kw_only=True)
class Layers:
    """Where quantization loses.

    Attributes:
        sensitivity: what was measured.
        settings: that the network was quantized with, for a person.
        is_untreated: whether it was rounded to the nearest without anything else, as by other tools.
        profiles: figures of all layers.
        shares: for each layer, the part of the KL that goes away when it stays in float, in percent.
        diagonal: weights of the layer whose diagonal stands out most, and its name.
        worst: histograms of the layers that cost most.
    """

    sensitivity: Sensitivity
    settings: str
    is_untreated: bool
    profiles: Sequence[Profile]
    shares: Sequence[float]
    diagonal: tuple[str, GridChart] | None
    worst: Sequence[tuple[str, Sequence[GridChart]]]


@dataclass(frozen=True, kw_only=True)
class View:
    """A run as the templates read it.

    Attributes:
        run: what was measured.
        key: names its parts within the page.
        verdict: what a reader wants to know first.
        rows: of the table, with the drawing of their interval.
        layers: what was found of them, None without an analysis.
        parity: model -> its rows that were compared with the simulation.
        images: model -> pictures on which it disagrees with float, the model of the verdict first.
        calibration: name -> address of its picture, where there is one.
        pictured: whether there is any picture.
    """

    run: Run
    key: str
    verdict: Verdict
    rows: tuple[tuple[Row, Interval | None], ...]
    layers: Layers | None
    parity: Mapping[str, Sequence[Row]]
    images: Mapping[str, Sequence[tuple[DisagreementRecord, str | None]]]
    calibration: Mapping[str, str | None]

    @property
    def facts(self) -> Mapping[str, str]:
        """The environment as a list of names and values."""
        source = self.run.source
        if source is None:
            return {}
        facts = dict(source.environment)
        packages = facts.pop("packages", None)
        if isinstance(packages, dict):
            facts |= packages
        return {str(name): text for name, value in facts.items() if (text := _text(value)) != _NONE}


def number(value: float | None, digits: int = 2, factor: float = 1.0) -> str:
    """Return a number as a text, a dash for None."""
    return _NONE if value is None else f"{value * factor:,.{digits}f}".replace("-", MINUS)


def bins() -> list[str]:
    """Return the bins of logit differences in words."""
    ends = [f"{edge:g}" for edge in STEP_EDGES]
    return ["equal", *(f"up to {end}" for end in ends[1:]), f"above {ends[-1]}"]


def settings(runs: Sequence[Run]) -> list[tuple[str, list[str], bool]]:
    """Return each option, its value in every run, and whether the runs differ in it."""
    configurations = [{} if run.source is None else run.source.config for run in runs]
    names = dict.fromkeys(name for configuration in configurations for name in configuration)
    values = {name: [_text(configuration.get(name)) for configuration in configurations] for name in names}
    return [(str(name), texts, len(set(texts)) > 1) for name, texts in values.items()]


def _views(runs: Sequence[Run]) -> list[View]:
    rows = [() if run.record is None else run.record.rows for run in runs]
    drawn = iter(intervals([row for each in rows for row in each]))
    return [
        _view(run, f"run{place}", tuple((row, next(drawn)) for row in each))
        for place, (run, each) in enumerate(zip(runs, rows, strict=True), 1)
    ]


def _view(run: Run, key: str, rows: tuple[tuple[Row, Interval | None], ...]) -> View:
    judged = verdict(run)
    parity: dict[str, list[Row]] = {}
    images: dict[str, list[tuple[DisagreementRecord, str | None]]] = {}
    for row, _ in rows:
        if row.logit_steps is not None and len(row.logit_steps) == len(bins()):
            parity.setdefault(row.calibrator or "as given", []).append(row)
    if run.record is not None:
        if judged.row is not None and judged.row.calibrator is not None:
            images[judged.row.calibrator] = []  # comes first
        for each in run.record.disagreements:
            address = run.thumbnails.address(EVALUATION, each.image)
            images.setdefault(each.calibrator, []).append((each, address))
    calibration = run.source.calibration if run.source is not None else None
    return View(
        run=run,
        key=key,
        verdict=judged,
        rows=rows,
        layers=_layers(run),
        parity=parity,
        images={name: found for name, found in images.items() if found},
        calibration={
            name: run.thumbnails.address(CALIBRATION, name) for name in (calibration.examples if calibration else ())
        },
    )


def _layers(run: Run) -> Layers | None:
    measured = run.measured
    if measured is None:
        return None
    given = {} if run.analysis is None else run.analysis.config
    told = ("target", "calibrator", *TREATMENT, "weight_bits", "activation_bits")
    diagonal = measured.histogram
    return Layers(
        sensitivity=measured,
        settings=", ".join(f"{name.replace('_', ' ')} {_text(given[name])}" for name in told if name in given),
        is_untreated=given.get("equalization") == "none" and given.get("rounding") == "nearest",
        profiles=profiles(measured),
        shares=[100 * recovered_share(measured, layer) for layer in measured.layers],
        diagonal=None if diagonal is None else (diagonal.layer, diagonal_chart(diagonal)),
        worst=[(histogram.layer, grid_charts(histogram)) for histogram in measured.worst],
    )


def _text(value: Any) -> str:
    match value:
        case None | "" | [] | {}:
            return _NONE
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:g}"
        case list():
            return ", ".join(_text(each) for each in value)
        case dict():
            return ", ".join(f"{name} {_text(each)}" for name, each in value.items())
    return str(value)


def _compact(text: str) -> str:
    """Return the lines that hold something."""
    return "\n".join(line.rstrip() for line in text.splitlines() if line.strip())


def _source(text: str) -> str:
    """Return the text as a source that a content security policy allows."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
