import io
import json
from dataclasses import replace

import pytest
from rich.console import Console
from sensitivities import layer, measured

from repquant.errors import InputError
from repquant.methods.sensitivity import StepHistogram
from repquant.report.analysis import (
    Analysis,
    headline,
    layer_table,
    markdown_page,
    read_analysis,
    recovered_share,
    remarks,
    ruled_by_diagonal,
    weights_share,
    whole_table,
    write_analysis,
)
from repquant.report.record import CalibrationRecord


@pytest.fixture
def sensitivity():
    return measured(
        layer("stem.conv"),
        layer("stages.2.13.conv", share=1.0, sigma=73.64),
        layer("pool", kind="pool", sigma=None),
        histogram=StepHistogram(layer="stages.2.13.conv", first=-1, diagonal=(0, 0, 9), others=(4, 5, 6)),
    )


@pytest.fixture
def analysis(sensitivity):
    return Analysis(
        output="runs/a0",
        config={"arch": "RepVGG-A0", "mean": [0.5, 0.5, 0.5]},
        inputs={"weights": "ab" * 32},
        environment={
            "repquant": "0.1.0",
            "python": "3.11.7",
            "machine": "x86_64",
            "cpu": "AMD EPYC",
            "cores": 2,
            "packages": {"torch": "2.13.0", "openvino": None},
        },
        calibration=CalibrationRecord(images=512, seed=0, sha256="cd" * 32, seconds=3.5),
        seconds=80.123456789,
        sensitivity=sensitivity,
        advice="Do this.",
        notes=("This CPU has VNNI.",),
        skipped={"analysis: a/1.jpg": "truncated"},
    )


def test_reads_back_what_it_wrote(analysis, tmp_path):
    for each in (analysis, replace(analysis, sensitivity=replace(analysis.sensitivity, histogram=None))):
        write_analysis(each, tmp_path / "analysis.json")
        assert read_analysis(tmp_path / "analysis.json") == each


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 9}, "schema version 9; this program reads version 1"),
        ({"sensitivity": {"images": 3}}, "fields do not fit"),
        ({"surplus": 1}, "fields do not fit"),
    ],
)
def test_other_content_is_refused(analysis, tmp_path, change, message):
    path = tmp_path / "analysis.json"
    path.write_text(json.dumps(json.loads(analysis.to_json()) | change))
    with pytest.raises(InputError, match=message):
        read_analysis(path)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"give the analysis\.json of a run"):
        read_analysis(tmp_path / "none.json")


def test_shares(sensitivity):
    assert weights_share(sensitivity) == pytest.approx(0.9)
    assert weights_share(measured(weights=0.0, activations=0.0)) is None
    assert recovered_share(sensitivity, layer("a", without=2.5e-3)) == pytest.approx(0.75)
    assert recovered_share(sensitivity, layer("a", without=12e-3)) == pytest.approx(-0.2)
    assert ruled_by_diagonal(sensitivity) == ("stages.2.13.conv",)
    assert ruled_by_diagonal(measured(layer("a", share=0.5), layer("b", share=0.51), layer("c"))) == ("b",)


def test_headline(analysis):
    assert headline(analysis) == {
        "output": "runs/a0",
        "images": 256,
        "skipped": 1,
        "kl": 0.01,
        "kl_weights": 0.009,
        "kl_activations": 0.001,
        "agreement": 98.4375,
        "weights_share": 0.9,
        "layers": 3,
        "identity_layers": 1,
        "diagonal_layers": 1,
        "worst_layer": "stem.conv",
        "worst_layer_share": 0.0,
        "seconds": 80.1235,
        "advice": "Do this.",
    }


def test_remarks(sensitivity):
    assert remarks(sensitivity) == ()
    (no_identity,) = remarks(measured(layer("other")))
    assert "there is no diagonal to look at" in no_identity
    (constant,) = remarks(measured(layer("identity", share=1.0), layer("flat", share=0.0, sigma=None)))
    assert constant == "no range over sigma where the weights of a channel do not vary: flat"


def cells(line):
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def test_page(analysis):
    page = markdown_page(analysis, [("range.svg", "The range")])
    assert page.startswith("# Where quantization loses\n\nDo this.\n\n| quantized | KL x1000 | agree % |\n")
    rows = {cells(line)[0]: cells(line)[1:] for line in page.splitlines() if line.startswith("|")}
    assert rows["weights only"] == ["9.000", "98.4"]
    assert rows["stages.2.13.conv"] == [
        "73.6", "594.0", "100", "13.8", "22.0", "46.3", "0.500", "98.4", "10.000", "98.4",
    ]  # fmt: skip
    assert rows["stem.conv"][2:4] == ["-", "-"]
    assert len(rows["layer"]) == len(rows["pool"]) == len(rows["stages.2.13.conv"])
    assert "- 256 images analyzed, 512 for calibration (seed 0), 1 unreadable skipped\n" in page
    assert "- AMD EPYC, 2 cores; repquant 0.1.0, python 3.11.7, torch 2.13.0\n- This CPU has VNNI.\n" in page
    assert page.endswith("![The range](range.svg)\n")


def test_screen_shows_the_same_figures_in_80_columns(analysis):
    console = Console(file=io.StringIO(), width=80)
    console.print(layer_table(analysis))
    console.print(whole_table(analysis))
    shown = [line.split() for line in console.file.getvalue().splitlines()]
    page = [cells(line) for line in markdown_page(analysis).splitlines() if line.startswith("|")]
    for row in page:
        if row[0] not in ("quantized", "layer", "---"):
            assert " ".join(row).split() in shown
