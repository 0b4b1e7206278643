"""What people get wrong: status 2, a sentence that helps, no traceback, and nothing left behind."""

import resource
import shutil
from contextlib import contextmanager

import pytest
import torch
from PIL import Image

from repquant.models.checkpoints import load_tensors
from repquant.report.record import read_record


class Payload:
    def __reduce__(self):
        return (open, ("executed", "w"))


@pytest.fixture
def ptq(repquant, weights, photographs, small_options, tmp_path):
    """Run a quick `ptq` with changed options: (status, stderr); the output is tmp_path / "out" / "runs" / "one"."""

    def run(**changes):
        options = dict(zip(small_options[::2], small_options[1::2], strict=True))
        options |= {
            "--weights": weights, "--data": photographs, "--target": "onnxruntime", "--calibration-images": 4,
            "--calibrator": "max", "--runtimes": "pytorch", "--equalization": "none", "--rounding": "nearest",
            "--output": tmp_path / "out" / "runs" / "one",
        }  # fmt: skip
        options |= {f"--{key.replace('_', '-')}": value for key, value in changes.items()}
        status, _, err = repquant("ptq", *(part for item in options.items() for part in item))
        return status, err

    (tmp_path / "out").mkdir()
    return run


@pytest.fixture
def own_photographs(photographs, tmp_path):
    return shutil.copytree(photographs, tmp_path / "own")


@contextmanager
def file_size_limit(size):
    """Stop a write as a full disk does: with an OSError in its middle."""
    _, hard = before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def assert_refused(result, tmp_path, *words):
    """Status 2, a message with these words, and nothing left: no folder, no hidden one, none above them."""
    status, err = result
    assert status == 2, err
    assert "Traceback" not in err
    for word in words:
        assert word in err
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": "missing"}, ["missing", "does not exist"]),
        ({"num_classes": 3}, ["do not fit RepVGG-tiny with 3 classes", "pass --arch RepVGG-tiny --num-classes 2"]),
        ({"num_classes": -1}, ["--num-classes -1 was given; allowed is from 0 to 1,000,000"]),
        ({"arch": "RepVGG-A0"}, ["do not fit RepVGG-A0", "RepVGG-tiny"]),
        ({"arch": "RepVGG-A9"}, ["unknown architecture", "did you mean RepVGG-A"]),
        ({"weights": "missing.pth"}, ["missing.pth", "does not exist"]),
        ({"weights": "missing.pth", "rounding": "learned"}, ["missing.pth", "does not exist"]),
        ({"calibration_images": 0}, ["--calibration-images 0", "from 1 to"]),
        ({"calibration_images": 1000}, ["1000", "there are 24"]),
        ({"batch_size": 0}, ["--batch-size 0"]),
        ({"workers": -1}, ["--workers -1"]),
        ({"image_size": 0}, ["--image-size 0"]),
        ({"image_size": 3_000_000_000}, ["--image-size 3000000000", "from 1 to 8,192"]),
        ({"image_size": 8192, "crop_ratio": 0.01}, ["image size 8192", "crop ratio 0.01", "more than"]),
        ({"crop_ratio": 1e-320}, ["--crop-ratio", "from 0.01 to 1"]),
        ({"mean": "1e30,0,0"}, ["--mean 1e+30,0.0,0.0", "for each of them is from -1,000 to 1,000"]),
        ({"mean": "nan,0,0"}, ["--mean nan,0.0,0.0"]),
        ({"seed": 2**64}, ["--seed 18446744073709551616"]),
        ({"workers": 10**4}, ["--workers 10000"]),
        ({"crop_ratio": 2}, ["--crop-ratio 2.0"]),
        ({"std": "[0.2,0,0.2]"}, ["--std 0.2,0.0,0.2", "from 0.0001"]),
        ({"std": "[.inf,1,1]"}, ["--std", "expected three numbers"]),
        ({"std": "inf,1,1"}, ["--std inf,1.0,1.0", "to 1,000"]),
        ({"percentile": 0}, ["--percentile 0.0", "more than 0 and at most 100"]),
        ({"percentile": 101}, ["--percentile 101.0"]),
        ({"rounding_images": -1}, ["--rounding-images -1"]),
        (
            {"activation_bits": 6, "runtimes": "all"},
            ["activations of 6 bits can only be simulated", "--runtimes pytorch"],
        ),
        ({"weight_bits": 1}, ["--weight-bits 1", "from 2 to 8"]),
        (
            {"reconstruction_gains": True, "per_tensor_weights": True},
            ["--reconstruction-gains", "leave --per-tensor"],
        ),
        (
            {"reconstruction_steps": 5, "reconstruction_drop": 0.5},
            ["--reconstruction-steps, --reconstruction-drop: for learned rounding alone", "it is nearest"],
        ),
        ({"rounding": "up"}, ["--rounding up", "feedback, learned, nearest"]),
        ({"weight_ranges": "entropy"}, ["--weight-ranges entropy was given; allowed is one of max, mse"]),
        ({"identity": "gone"}, ["--identity gone", "fused, residual, depthwise, coarse-fine"]),
        ({"equalization": "all"}, ["--equalization all", "none, ranges, noise"]),
        ({"target": "tflite"}, ["--target tflite", "tensorrt, onnxruntime, openvino"]),
        ({"calibrator": "median"}, ["median", "max, percentile, mse, entropy"]),
        ({"runtimes": "caffe"}, ["caffe", "onnxruntime"]),
        ({"runtimes": "litert", "target": "tensorrt"}, ["runtime litert", "target tensorrt keeps sums in 32 bits"]),
        ({"runtimes": "tensorrt", "target": "litert"}, ["tensorrt"]),
        ({"runtimes": "executorch", "target": "tensorrt"}, ["runtime executorch", "ExecuTorch rounds every summand"]),
        ({"runtimes": "ncnn", "target": "tensorrt"}, ["runtime ncnn", "symmetric activations from -127 to 127 alone"]),
        ({"vnni": "maybe"}, ["--vnni maybe", "auto, yes, no"]),
        ({"keep_float": "stages.9"}, ["no layer is named 'stages.9'"]),
        ({"image_size": "large"}, ["large"]),
        ({"no_such_option": 1}, ["no-such-option"]),
    ],
)
def test_options(ptq, tmp_path, changes, words):
    status, err = ptq(**changes)
    assert_refused((status, err), tmp_path, *words)
    assert "calibration: one pass" not in err, "refused only after long work"


@pytest.mark.parametrize("split", ["train", "val"])
def test_empty_data_folder(ptq, own_photographs, tmp_path, split):
    shutil.rmtree(own_photographs / split)
    (own_photographs / split).mkdir()
    assert_refused(ptq(data=own_photographs), tmp_path, f"no images in {own_photographs / split}", "empty")


def test_data_with_another_number_of_classes(ptq, own_photographs, tmp_path):
    for split in ("train", "val"):
        (own_photographs / split / "grey").mkdir()
        Image.new("RGB", (9, 9)).save(own_photographs / split / "grey" / "0.png")
    assert_refused(ptq(data=own_photographs), tmp_path, "has 3 classes in val, the model has 2")


def test_data_without_images(ptq, own_photographs, tmp_path):
    for image in (own_photographs / "val").rglob("*.png"):
        image.rename(image.with_suffix(".txt"))
    assert_refused(ptq(data=own_photographs), tmp_path, "none of the 16 files", "is an image")


def test_checkpoint_with_code_runs_none_of_it(ptq, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Payload()}, "bad.pth")
    assert_refused(ptq(weights="bad.pth"), tmp_path, "nothing in the file was run")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["cut.pth", "cut.safetensors"])
def test_truncated_checkpoint(ptq, weights, tmp_path, name):
    (tmp_path / name).write_bytes(weights.read_bytes()[:5000])
    assert_refused(ptq(weights=tmp_path / name), tmp_path, name, "truncated")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_checkpoint_with_values_that_are_no_numbers(ptq, weights, tmp_path, value):
    tensors = load_tensors(weights)
    tensors["linear.weight"][0, 0] = value
    torch.save(tensors, tmp_path / "bad.pth")
    assert_refused(ptq(weights=tmp_path / "bad.pth"), tmp_path, "linear.weight", "1 NaN or infinite values")


def test_activations_that_overflow(ptq, weights, tmp_path):
    tensors = load_tensors(weights)
    tensors["stage0.rbr_dense.bn.weight"].fill_(3e38)
    torch.save(tensors, tmp_path / "huge.pth")
    assert_refused(ptq(weights=tmp_path / "huge.pth"), tmp_path, "input of stages.0.0.conv")


@pytest.fixture
def truncated_jpeg(own_photographs):
    """Replace a photograph by a JPEG that ends early; returns the function that does it."""

    def truncate(split):
        image = own_photographs / split / "dark" / "03.png"
        broken = image.with_name("broken.jpg")
        Image.open(image).save(broken, quality=95)
        broken.write_bytes(broken.read_bytes()[:-500])
        image.unlink()

    return truncate


@pytest.mark.parametrize("split", ["train", "val"])
def test_truncated_image_is_named(ptq, own_photographs, truncated_jpeg, tmp_path, split):
    truncated_jpeg(split)
    result = ptq(data=own_photographs, calibration_images=24)
    assert_refused(result, tmp_path, f"can't read image {own_photographs / split / 'dark' / 'broken.jpg'}", "truncated")
    assert "--skip-unreadable" in result[1]


def test_truncated_images_are_skipped_and_counted_and_unusual_ones_are_read(
    ptq, own_photographs, truncated_jpeg, tmp_path
):
    truncated_jpeg("train")
    truncated_jpeg("val")
    Image.new("RGBA", (20, 30), (9, 9, 9, 128)).save(own_photographs / "val" / "dark" / "alpha.png")
    Image.new("L", (33, 20), 7).save(own_photographs / "val" / "dark" / "grey.jpg")
    Image.new("RGB", (1, 1)).save(own_photographs / "val" / "dark" / "one.png")
    more_than_there_are = 1000
    status, err = ptq(
        data=own_photographs, calibration_images=24, skip_unreadable="true", batch_size=more_than_there_are
    )
    assert status == 0, err
    assert "2 unreadable images were left out" in err
    record = read_record(tmp_path / "out" / "runs" / "one" / "result.json")
    assert record.float_row.images == 16 - 1 + 3
    assert record.skipped.keys() == {"calibration: dark/broken.jpg", "evaluation: dark/broken.jpg"}
    assert record.calibration.images == 23
    assert "one pass over 23 images" in err


@pytest.mark.parametrize(("value", "calibrator"), [(0, "entropy"), (0.5, "all")])
def test_layers_that_see_only_one_value(ptq, weights, tmp_path, value, calibrator):
    tensors = load_tensors(weights)
    for branch in ("rbr_dense", "rbr_1x1"):
        tensors[f"stage0.{branch}.bn.weight"].zero_()
        tensors[f"stage0.{branch}.bn.bias"].fill_(value / 2)
    torch.save(tensors, tmp_path / "constant.pth")
    status, err = ptq(weights=tmp_path / "constant.pth", calibrator=calibrator)
    assert status == 0, err
    for row in read_record(tmp_path / "out" / "runs" / "one" / "result.json").results:
        assert row.agreement == 100
        assert row.kl < 1e-3


def test_existing_output_is_refused_and_replaced_only_at_the_end(ptq, tmp_path):
    run = tmp_path / "out" / "runs" / "one"
    run.mkdir(parents=True)
    (run / "result.json").write_text("earlier")
    status, err = ptq()
    assert (status, "--overwrite" in err) == (2, True)
    status, _ = ptq(overwrite="true", weights="missing.pth")
    assert status == 2
    with file_size_limit(100_000):
        status, err = ptq(overwrite="true")
    assert status == 1, err
    assert err.endswith(f"repquant ptq: [Errno 27] File too large: '{run}'\n")
    assert list(run.parent.rglob("*")) == [run, run / "result.json"]
    assert (run / "result.json").read_text() == "earlier"
    status, err = ptq(overwrite="true")  # and so the tests above see one mistake each
    assert status == 0, err
    assert [path.name for path in run.parent.iterdir()] == ["one"]
    assert read_record(run / "result.json").results


def test_other_peoples_files_are_not_overwritten(ptq, tmp_path):
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    status, err = ptq(overwrite="true", output=tmp_path / "out")
    assert status == 2
    assert "holds files but no result.json" in err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("folder", ["file", "proc"])
def test_output_that_can_not_be_written(ptq, tmp_path, folder):
    (tmp_path / "file").write_text("")
    parent = tmp_path / "file" if folder == "file" else "/proc"
    assert_refused(ptq(output=f"{parent}/run"), tmp_path, f"can't write to {parent}")


def test_full_disk_leaves_nothing(ptq, tmp_path):
    with file_size_limit(100_000):
        status, err = ptq()
    assert status == 1, err
    assert "Traceback" not in err
    assert list((tmp_path / "out").iterdir()) == []
