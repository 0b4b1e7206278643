"""What `analyze` writes, on a small network and small images."""

import subprocess
import sys

import pytest

from repquant.cli.analyze import images_to_draw
from repquant.errors import InputError
from repquant.report.analysis import headline as headline_of
from repquant.report.analysis import read_analysis


@pytest.fixture
def analyze(repquant, weights, photographs, small_options, tmp_path):
    """Run `analyze` on 8 images to calibrate: (status, stdout, stderr); the output is tmp_path / "run"."""

    def run(*arguments):
        return repquant(
            "analyze", "--weights", weights, "--data", photographs, *small_options, "--calibration-images", 8,
            "--target", "tensorrt", "--output", tmp_path / "run", "--batch-size", 4, *arguments,
        )  # fmt: skip

    return run


def test_folder_and_last_line(analyze, photographs, headline, tmp_path):
    """12 images without labels: 8 of them calibrate and 6 are analyzed, so 2 have to do both."""
    status, out, err = analyze(
        "--calibration-data", photographs / "train" / "dark", "--analysis-images", 6, "--keep-float", "head"
    )  # fmt: skip
    assert status == 0, err
    folder = tmp_path / "run"
    figures = {f"{name}.{ending}" for name in ("range", "kl", "weights") for ending in ("png", "svg")}
    assert {path.name for path in folder.iterdir()} == figures | {"analysis.json", "analysis.md"}
    analysis = read_analysis(folder / "analysis.json")
    assert headline(out) == headline_of(analysis)
    assert err.strip().splitlines()[-1] == analysis.advice
    assert len(out.splitlines()) == 1
    assert analysis.config["calibrator"] == "mse"
    assert analysis.sensitivity.images == 6
    assert "2 of the images analyzed were calibrated on" in analysis.notes[-1]
    assert analysis.notes[-1] in err
    assert len(analysis.inputs["weights"]) == len(analysis.calibration.sha256) == 64
    names = [layer.name for layer in analysis.sensitivity.layers]
    assert names[0] == "stem.conv"
    assert "adaptive_avg_pool2d" in names
    assert all(name in err for name in names)
    page = (folder / "analysis.md").read_text()
    assert analysis.advice in page
    assert "](weights.svg)" in page


@pytest.mark.parametrize(("rounding_images", "rounded"), [(8, True), (0, False)])
def test_advice_knows_what_was_done(analyze, tmp_path, monkeypatch, rounding_images, rounded):
    """Also that without images to round for nothing was rounded for them."""
    monkeypatch.setattr("repquant.report.advice.NEGLIGIBLE_KL", 0.0)
    monkeypatch.setattr("repquant.report.advice.MOST", 0.0)
    status, _, err = analyze(
        "--analysis-images", 4, "--equalization", "noise", "--rounding", "learned", "--reconstruction-steps", 2,
        "--rounding-images", rounding_images,
    )  # fmt: skip
    assert status == 0, err
    analysis = read_analysis(tmp_path / "run" / "analysis.json")
    assert "--equalization" not in analysis.advice
    assert ("--rounding" in analysis.advice) != rounded
    assert any("--rounding-images 0" in note for note in analysis.notes) != rounded


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--analysis-images", 0), "--analysis-images 0 was given; allowed is from 1 to"),
        (("--analysis-images", 25), "--analysis-images 25 was given; allowed are 1 to 24"),
        (("--calibrator", "all"), "--calibrator all was given; allowed is one of max, percentile, mse, entropy"),
        (("--analysis-images", 8, "--keep-float", "stages.9"), "no layer is named 'stages.9'"),
    ],
)
def test_what_is_refused(analyze, tmp_path, arguments, message):
    status, out, err = analyze(*arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("available", "calibration", "analysis", "drawn"), [(1000, 512, 256, 768), (600, 512, 256, 600), (8, 4, 4, 8)]
)
def test_other_images_are_drawn_where_there_are_enough(available, calibration, analysis, drawn):
    assert images_to_draw(available, calibration, analysis) == drawn


@pytest.mark.parametrize("analysis", [-1, 0, 9])
def test_numbers_of_images_that_there_are_not(analysis):
    with pytest.raises(InputError, match="allowed are 1 to 8"):
        images_to_draw(8, 4, analysis)


def test_the_parser_imports_no_plotting():
    code = "import sys, repquant.cli.main as m; m.build_parser(); print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
