"""The page of a small record: its figures are the record's, and it holds together as a document."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import pytest
import torch
from sensitivities import layer, measured

from repquant.data.loading import Example
from repquant.methods.sensitivity import GridHistogram, StepHistogram
from repquant.report.analysis import Analysis
from repquant.report.page import html
from repquant.report.record import DisagreementRecord
from repquant.report.run import Run
from repquant.report.thumbnails import CALIBRATION, EVALUATION, Thumbnails

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(1)>'
DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"
VOID = {"meta", "img", "br", "input", "link", "hr"}


class Document(HTMLParser):
    """What a page consists of; open and closed elements have to match."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.open, self.tables, self.texts = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"{tag} has an attribute twice"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, _):
        raise AssertionError(f"{tag} closes itself, which HTML ignores")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data.strip()))
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] = f"{self.tables[-1][-1][-1]} {data.strip()}".strip()

    def all(self, *tags):
        return [attributes for tag, attributes in self.elements if tag in tags]

    def text(self):
        words = " ".join(text for tag, text in self.texts if tag not in ("style", "script"))
        return " ".join(words.split())


def analysis_of(record, **changes):
    histogram = StepHistogram(layer="stages.0", first=-2, diagonal=(0, 0, 0, 0, 9), others=(1, 5, 60, 5, 1))
    worst = GridHistogram(
        layer="stages.0",
        weight_first=-2,
        weights=(1, 5, 60, 5, 10),
        input_first=0,
        inputs=(900, 90, 10),
        clipped_below=0,
        clipped_above=5,
    )
    found = replace(
        measured(layer("stages.0", share=1.0, without=2e-3), layer("add", kind="add", sigma=None), histogram=histogram),
        worst=(worst,),
    )
    values = {
        "output": "runs/a0-analysis",
        "config": {"target": "onnxruntime", "equalization": "none", "rounding": "nearest"},
        "inputs": record.inputs,
        "environment": record.environment,
        "calibration": record.calibration,
        "seconds": 1.0,
        "sensitivity": found,
        "advice": "Scale the channels.",
    }
    return Analysis(**(values | changes))


def whole_run(record, name="a0", image="val/a/1.jpg", answer="tench"):
    record = replace(
        record,
        calibration=replace(record.calibration, examples=("a/7.jpg",)),
        results=(record.results[0], replace(record.results[1], latency_ms=4.25, latency_ratio=0.5)),
        disagreements=(
            DisagreementRecord(
                calibrator="entropy",
                image=image,
                label="church",
                kl=1.25,
                float_answer="church",
                float_probability=0.613,
                answer=answer,
                probability=0.547,
            ),
        ),
    )
    pixels = torch.zeros(3, 8, 8, dtype=torch.uint8)
    examples = {CALIBRATION: [Example("a/7.jpg", None, pixels)], EVALUATION: [Example(image, "church", pixels)]}
    return Run(
        name=name,
        record=record,
        analysis=analysis_of(record),
        thumbnails=Thumbnails.of(examples),
        command="repquant ptq --arch RepVGG-A0",
    )


@pytest.fixture
def run(record):
    return whole_run(record)


@pytest.fixture
def bare(record):
    """A record as versions before had them: nothing but the table."""
    rows = tuple(replace(row, logit_steps=None) for row in record.results)
    return Run(name="old", record=replace(record, results=rows, calibration=None, environment={}, config={}))


def test_figures_of_the_page_are_those_of_the_record(run):
    page = Document(html([run]))
    (results,) = [table for table in page.tables if "drop" in table[0]]
    assert results[0] == [
        "model", "runs in", "top-1 %", "drop", "95 % interval", "agree %", "KL x1000", "SQNR dB", "parity %",
        "max steps", "images/s", "MB",
    ]  # fmt: skip
    assert results[1][:4] == ["float", "pytorch", "85.55", DASH]
    assert results[2][:4] == ["entropy", "simulated", "85.55", "+0.20"]
    assert results[3] == [
        "entropy served", "onnxruntime", "85.55", "+0.20", f"{MINUS}0.27 to +0.68", "96.90", "9.35", "24.0", "99.95",
        "0.60", "318", "7.24",
    ]  # fmt: skip
    layers = next(table for table in page.tables if "layer" in table[0])
    assert layers[1] == ["1", "stages.0", "conv3x3", "3.4", "100", "22.0", "46.3", "0.500", "2.000", "80.0"]
    assert layers[2][1:6] == ["add", "add", DASH, DASH, "22.0"]
    bins = next(table for table in page.tables if table[0][0] == "steps")
    assert bins[0][1] == "onnxruntime parity 99.95 %, at most 0.60"
    assert [row[1] for row in bins[1:]] == ["3,000", "900", "20", "4", "0", "1", "0", "0", "0"]
    assert [row[0] for row in bins[1:4]] == ["equal", "up to 0.01", "up to 0.03"]
    latency = next(table for table in page.tables if "median ms" in table[0])
    assert latency[1:] == [
        ["1", "entropy, onnxruntime", "4.250", "85.55"],
        ["2", "float, onnxruntime", "8.500", "85.55"],
    ]
    text = page.text()
    assert "float church 61 % INT8 tench 55 %" in text
    assert "KL 1.250, another answer" in text
    assert "cd" * 32 in text
    assert "repquant ptq --arch RepVGG-A0" in text
    assert "0.5 % of the values clipped" in text
    assert "AMD EPYC" in text


def check_document(text):
    page = Document(text)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for anchor in page.all("a"):
        assert anchor["href"].removeprefix("#") in ids
    named = [each for _, attributes in page.elements for each in attributes.get("aria-labelledby", "").split()]
    assert set(named) <= set(ids)
    for image in page.all("img"):
        assert image["alt"].strip()
        assert image["src"].startswith("data:image/")
    for drawing in page.all("svg"):
        spoken = drawing.get("aria-label") or drawing.get("aria-labelledby")
        assert (drawing.get("role") == "img" and spoken) or drawing.get("aria-hidden") == "true"
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert not any("style" in attributes for _, attributes in page.elements)
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert len(page.all("script")) == len(page.all("style")) == 1
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", text)
    for number in re.findall(r"\b(?:x|y|cx|cy|x1|x2|y1|y2|width|height)=\"([^\"]*)\"", text):
        assert abs(float(number)) < 1e4
    return page


def test_page_holds_together_as_a_document(run, bare):
    check_document(html([run]))
    check_document(html([bare]))
    check_document(html([run, replace(bare, name="b"), Run(name="c", analysis=run.analysis)]))
    check_document(html([Run(name="empty", record=replace(bare.record, float_row=None, results=()))]))


def test_what_a_run_lacks_is_left_out_with_a_sentence_how_to_get_it(bare):
    page = check_document(html([replace(bare, analyze="repquant analyze --arch A")]))
    text = page.text()
    for sentence in (
        "No latency was measured.",
        "This run was not analyzed. Run repquant analyze --arch A and give",
        "No runtime was compared with the simulation.",
        "The record names no such images.",
        "Nothing is recorded of the images that ranges came from.",
    ):
        assert sentence in text


def test_hostile_names_stay_text(record):
    run = whole_run(record, name=HOSTILE, image=HOSTILE, answer=HOSTILE)
    found = replace(run.analysis.sensitivity, layers=(layer(HOSTILE), layer("b")))
    run = replace(
        run,
        command=HOSTILE,
        record=replace(run.record, config={HOSTILE: HOSTILE}, notes=(HOSTILE,), skipped={HOSTILE: HOSTILE}),
        analysis=replace(run.analysis, sensitivity=found, advice=HOSTILE),
    )
    page = check_document(html([run, replace(run, name=f"{HOSTILE}2")]))
    assert page.text().count(HOSTILE) > 10
    assert HOSTILE in [image["alt"] for image in page.all("img")]


def test_nothing_is_loaded_and_only_its_own_script_runs(run):
    (policy,) = [each["content"] for each in Document(html([run])).all("meta") if "http-equiv" in each]
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy


def test_equal_records_give_equal_pages(run):
    assert html([run]) == html([run])


def test_runs_side_by_side_mark_what_differs(run, record):
    other = replace(run, name="a0-residual", record=replace(run.record, config=run.record.config | {"image_size": 224}))
    page = check_document(html([run, other]))
    (options,) = [table for table in page.tables if table[0] == ["option", "a0", "a0-residual"]]
    assert ["image_size differs", "160", "224"] in options
    assert ["arch", "RepVGG-A0", "RepVGG-A0"] in options
    (results,) = [table for table in page.tables if "drop" in table[0]]
    assert [row[0] for row in results[1:]] == ["a0"] * 3 + ["a0-residual"] * 3


def colors(style, block):
    return dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6});", style[block[0] : block[1]]))


def luminance(color):
    channels = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_colors_have_the_contrast_that_wcag_asks_for(run):
    style = re.search("<style>(.*?)</style>", html([run]), re.DOTALL)[1]
    dark, printed = style.index("prefers-color-scheme: dark"), style.index("@media print")
    for block in ((0, dark), (dark, printed), (printed, len(style))):
        found = colors(style, block)
        for ground in ("paper", "panel", "chosen"):
            for name in ("ink", "muted", "link", "good", "bad"):
                assert contrast(found[name], found[ground]) >= 4.5, (name, ground)
        for name in ("weights", "activations", "only", "spared"):
            assert contrast(found[name], found["panel"]) >= 3, name


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_a_long_network_stays_small(record):
    run = whole_run(record)
    many = tuple(layer(f"stages.{place}.block.conv", share=0.5) for place in range(600))
    text = html([replace(run, analysis=replace(run.analysis, sensitivity=replace(run.measured, layers=many)))])
    assert len(text.encode()) < 3 * 2**20


def test_numbers_that_no_run_gives_do_not_break_the_drawing(run):
    values = {
        "drop": 1e250,
        "drop_ci95": (1e299, -1e299),
        "kl": -1e300,
        "parity": 1e9,
        "logit_steps": (-5,) * 9,
        "latency_ms": -1e200,
        "latency_ratio": 1e-99,
    }
    wild = tuple(replace(row, **values) for row in run.record.results)
    found = replace(run.analysis.sensitivity, layers=(layer("a", sigma=1e300), layer("b", sigma=-1.0, without=-3.0)))
    page = html(
        [
            replace(
                run,
                record=replace(run.record, results=wild),
                analysis=replace(run.analysis, sensitivity=found),
            )
        ]
    )
    check_document(page)
