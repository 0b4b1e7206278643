"""What people get wrong: status 2, a sentence that helps, no traceback, and nothing left behind."""

import resource
import shutil
import subprocess
import sys

import pytest
import torch
from PIL import Image

from repquant.models.checkpoints import load_tensors


class Payload:
    def __reduce__(self):
        return (open, ("executed", "w"))


@pytest.fixture
def ptq(repquant, weights, photographs, small_options, tmp_path):
    """Run a quick `ptq` with changed options: (status, stderr); the output is tmp_path / "out" / "run"."""

    def run(**changes):
        options = dict(zip(small_options[::2], small_options[1::2], strict=True))
        options |= {
            "--weights": weights, "--data": photographs, "--target": "onnxruntime", "--calibration-images": 4,
            "--calibrator": "max", "--runtimes": "pytorch", "--output": tmp_path / "out" / "run",
        }  # fmt: skip
        options |= {f"--{key.replace('_', '-')}": value for key, value in changes.items()}
        status, _, err = repquant("ptq", *(part for item in options.items() for part in item))
        return status, err

    (tmp_path / "out").mkdir()
    return run


@pytest.fixture
def own_photographs(photographs, tmp_path):
    return shutil.copytree(photographs, tmp_path / "own")


def assert_refused(result, tmp_path, *words):
    status, err = result
    assert status == 2, err
    assert "Traceback" not in err
    for word in words:
        assert word in err
    assert list((tmp_path / "out").iterdir()) == []


def test_the_quick_run_itself_succeeds(ptq, tmp_path):
    status, err = ptq()
    assert status == 0, err
    assert (tmp_path / "out" / "run" / "result.json").is_file()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": "missing"}, ["missing", "does not exist"]),
        ({"num_classes": 3}, ["3", "2 classes"]),
        ({"arch": "RepVGG-A0"}, ["do not fit RepVGG-A0", "RepVGG-tiny"]),
        ({"arch": "RepVGG-A9"}, ["unknown architecture", "did you mean RepVGG-A"]),
        ({"weights": "missing.pth"}, ["missing.pth", "does not exist"]),
        ({"calibration_images": 0}, ["0 calibration images", "at least 1"]),
        ({"calibration_images": 1000}, ["1000", "there are 24"]),
        ({"batch_size": 0}, ["batch size 0"]),
        ({"image_size": 0}, ["image size 0"]),
        ({"crop_ratio": 2}, ["crop ratio 2"]),
        ({"percentile": 0, "calibrator": "percentile"}, ["percentile 0"]),
        ({"target": "tflite"}, ["tflite", "tensorrt, onnxruntime, openvino"]),
        ({"calibrator": "median"}, ["median", "max, percentile, mse, entropy"]),
        ({"runtimes": "caffe"}, ["caffe", "onnxruntime"]),
        ({"vnni": "maybe"}, ["maybe", "auto, yes and no"]),
        ({"keep_float": "stages.9"}, ["stages.9"]),
        ({"image_size": "large"}, ["large"]),
        ({"no_such_option": 1}, ["no-such-option"]),
    ],
)
def test_options(ptq, tmp_path, changes, words):
    assert_refused(ptq(**changes), tmp_path, *words)


def test_empty_data_folder(ptq, tmp_path):
    (tmp_path / "empty" / "val").mkdir(parents=True)
    assert_refused(ptq(data=tmp_path / "empty"), tmp_path, "no images", "empty")


def test_checkpoint_with_code_runs_none_of_it(ptq, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Payload()}, "bad.pth")
    assert_refused(ptq(weights="bad.pth"), tmp_path, "nothing in the file was run")
    assert not (tmp_path / "executed").exists()


def test_truncated_checkpoint(ptq, weights, tmp_path):
    (tmp_path / "cut.pth").write_bytes(weights.read_bytes()[:5000])
    assert_refused(ptq(weights=tmp_path / "cut.pth"), tmp_path, "cut.pth", "truncated")


def test_checkpoint_with_nan(ptq, weights, tmp_path):
    tensors = load_tensors(weights)
    tensors["linear.weight"][0, 0] = float("nan")
    torch.save(tensors, tmp_path / "nan.pth")
    assert_refused(ptq(weights=tmp_path / "nan.pth"), tmp_path, "linear.weight", "NaN")


@pytest.mark.parametrize("split", ["train", "val"])
def test_truncated_image_is_named_and_can_be_skipped(ptq, own_photographs, tmp_path, split):
    image = own_photographs / split / "dark" / "03.png"
    image.write_bytes(image.read_bytes()[:200])
    everything = {"data": own_photographs, "calibration_images": 24}
    assert_refused(ptq(**everything), tmp_path, "03.png", "--skip-unreadable")
    status, err = ptq(**everything, skip_unreadable="true")
    assert status == 0, err
    assert "1 unreadable images were left out" in err


def test_unusual_images_are_read(ptq, own_photographs, tmp_path):
    dark = own_photographs / "val" / "dark"
    Image.new("RGBA", (20, 30), (9, 9, 9, 128)).save(dark / "alpha.png")
    Image.new("L", (33, 20), 7).save(dark / "grey.jpg")
    Image.new("RGB", (1, 1)).save(dark / "one.png")
    status, err = ptq(data=own_photographs, batch_size=1000)
    assert status == 0, err


def test_layers_that_see_only_zeros(ptq, weights, tmp_path):
    tensors = load_tensors(weights)
    for name in ("rbr_dense", "rbr_1x1"):
        tensors[f"stage0.{name}.bn.weight"].zero_()
        tensors[f"stage0.{name}.bn.bias"].fill_(-1)
    torch.save(tensors, tmp_path / "dead.pth")
    status, err = ptq(weights=tmp_path / "dead.pth", calibrator="all")
    assert status == 0, err


def test_existing_output_is_refused_and_survives(ptq, tmp_path):
    run = tmp_path / "out" / "run"
    run.mkdir()
    (run / "precious").write_text("figures")
    status, err = ptq()
    assert (status, "--overwrite" in err) == (2, True)
    status, _ = ptq(overwrite="true", weights="missing.pth")
    assert status == 2
    assert (run / "precious").read_text() == "figures"
    status, err = ptq(overwrite="true")
    assert status == 0, err
    assert not (run / "precious").exists()
    assert [path.name for path in run.parent.iterdir()] == ["run"]


def test_output_that_can_not_be_written(ptq, tmp_path):
    (tmp_path / "file").write_text("")
    assert_refused(ptq(output=tmp_path / "file" / "run"), tmp_path, "can't write")


def test_full_disk_leaves_nothing(weights, photographs, small_options, tmp_path):
    """A limit on file size stops a write as a full disk does: with an OSError in its middle."""
    command = [
        sys.executable, "-m", "repquant", "ptq", "--weights", weights, "--data", photographs, *small_options,
        "--target", "onnxruntime", "--calibration-images", 4, "--calibrator", "max", "--runtimes", "pytorch",
        "--output", tmp_path / "run",
    ]  # fmt: skip
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
