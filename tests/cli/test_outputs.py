"""Nothing that is read is written over, and no result becomes data."""

import shutil
from pathlib import Path

import pytest

from repquant.cli.main import main


@pytest.fixture
def own(weights, photographs, tmp_path):
    """A folder with data/ and weights.pth."""
    shutil.copytree(photographs, tmp_path / "data")
    shutil.copy(weights, tmp_path / "weights.pth")
    return tmp_path


def options(own: Path, small: tuple[str, ...], output: Path) -> list[str]:
    given = ["--weights", own / "weights.pth", "--data", own / "data", "--target", "onnxruntime", "--output", output]
    return [str(part) for part in (*given, *small)]


def test_convert_does_not_destroy_the_branches_of_its_input(repquant, own, small_options, monkeypatch):
    monkeypatch.chdir(own)
    (own / "link.pth").symlink_to("weights.pth")
    before = (own / "weights.pth").read_bytes()
    for output in ("weights.pth", "./link.pth"):
        status, _, err = repquant(
            "convert", *small_options[:4], "--weights", own / "weights.pth", "--output", output, "--overwrite"
        )
        assert status == 2
        assert "is the file of --weights, which would be lost" in err
    assert (own / "weights.pth").read_bytes() == before


@pytest.mark.parametrize("verb", ["ptq", "quantize", "analyze", "qat", "reproduce"])
@pytest.mark.parametrize("place", ["data/train/out", "data/val", "data/val/deep/out", "link/out"])
def test_no_output_becomes_a_class_of_the_data(repquant, own, small_options, verb, place):
    (own / "link").symlink_to("data/train")
    before = sorted(own.rglob("*"))
    status, _, err = repquant(verb, *options(own, small_options, own / place))
    assert status == 2, err
    assert "is within the images of --data and would become a class of them" in err
    assert sorted(own.rglob("*")) == before


def test_train_too(repquant, own):
    given = ["--data", own / "data", "--output", own / "data/train/out", "--arch", "RepVGG-tiny", "--num-classes", "2"]
    status, _, err = repquant("train", *given, "--image-size", "32")
    assert status == 2, err
    assert "is within the images of --data" in err


def test_a_configuration_is_not_replaced(repquant, own, small_options):
    run = own / "run"
    run.mkdir()
    (run / "result.json").touch()
    (run / "mine.yaml").write_text("overwrite: true\n")
    status, _, err = repquant("ptq", *options(own, small_options, run), "--config", run / "mine.yaml")
    assert status == 2
    assert f"holds the configuration {run / 'mine.yaml'}, which would be lost" in err
    assert (run / "mine.yaml").exists()


@pytest.mark.parametrize("held", ["weights", "data"])
def test_an_output_that_holds_what_is_read_is_not_replaced(own, small_options, capsys, held):
    """Its result.json says that it is of an earlier run; that does not make what was put there ours."""
    run = own / "run"
    run.mkdir()
    (run / "result.json").touch()
    name = "weights.pth" if held == "weights" else "data"
    (own / name).rename(run / name)
    given = options(own, small_options, run)
    given[given.index(str(own / name))] = str(run / name)
    assert main(["ptq", *given, "--overwrite"]) == 2
    assert f"holds {run / name}, which --{held} reads" in capsys.readouterr().err
    assert (run / name).exists()
