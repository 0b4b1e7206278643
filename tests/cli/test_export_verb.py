import shutil

import onnx
import pytest

from repquant.methods import reconstruct


@pytest.fixture
def export(repquant, weights, small_options, tmp_path):
    """Run `export` with more options: (status, stdout, stderr); the output is tmp_path / "out" / "model.onnx"."""
    (tmp_path / "out").mkdir()

    def run(*arguments):
        output = tmp_path / "out" / "model.onnx"
        return repquant("export", "--weights", weights, *small_options, "--output", output, *arguments)

    return run


def test_unreadable_calibration_images_are_counted_and_named(export, photographs, headline, tmp_path):
    data = shutil.copytree(photographs, tmp_path / "own")
    (data / "train" / "dark" / "03.png").unlink()
    (data / "train" / "dark" / "03.png").symlink_to("nowhere.png")
    int8 = ("--data", data, "--calibrator", "max", "--calibration-images", 24)
    status, _, err = export(*int8)
    assert status == 2
    assert "pass --skip-unreadable" in err
    status, out, err = export(*int8, "--skip-unreadable", "true")
    assert status == 0, err
    assert headline(out)["skipped"] == 1
    assert "1 unreadable images were left out: calibration: dark/03.png" in err


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (("--weight-bits", 4), "--weight-bits"),
        (("--data", "somewhere", "--rounding", "learned"), "--rounding, --data"),
        (("--target", "tensorrt", "--keep-float", "first"), "--target, --keep-float"),
    ],
)
def test_options_for_int8_are_not_ignored_for_the_float_model(export, tmp_path, arguments, names):
    status, _, err = export(*arguments)
    assert status == 2
    assert {*names.split(", ")} == {*err.rpartition("export: ")[2].partition(":")[0].split(", ")}
    assert "for INT8 only, and without --calibrator the float model is written" in err
    assert list((tmp_path / "out").iterdir()) == []


def test_learned_rounding_goes_on_where_it_was_interrupted(export, photographs, tmp_path, monkeypatch):
    options = (
        "--data", photographs, "--calibrator", "mse", "--calibration-images", 8, "--rounding", "learned",
        "--reconstruction-steps", 5,
    )  # fmt: skip
    status, _, err = export(*options)
    assert status == 0, err
    whole = onnx.load(tmp_path / "out" / "model.onnx")
    (tmp_path / "out" / "model.onnx").unlink()

    learn = reconstruct.learn_rounding
    calls = []

    def learn_until_interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return learn(*arguments)

    monkeypatch.setattr(reconstruct, "learn_rounding", learn_until_interrupted)
    status, _, _ = export(*options)
    assert status == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.onnx.mse.rounding"]
    status, _, err = export(*options)
    assert status == 0, err
    layers = sum(node.op_type in ("Conv", "Gemm") for node in whole.graph.node)
    assert len(calls) == layers + 1
    assert onnx.load(tmp_path / "out" / "model.onnx") == whole
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.onnx"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output": "model.pb"}, "output model.pb does not end in .onnx"),
        ({"output": "there.onnx"}, "output there.onnx exists; choose another file or pass --overwrite"),
        ({"output": "there.onnx/model.onnx"}, "can't write to there.onnx"),
        ({"calibrator": "median"}, "--calibrator median was given; allowed is one of max, percentile, mse, entropy"),
        ({"calibrator": "max"}, "INT8 needs images to calibrate on; pass --data or --calibration-data"),
        ({"calibrator": "max", "data": "nowhere"}, "data folder nowhere does not exist"),
        ({"calibrator": "max", "data": "nowhere", "target": "tflite"}, "--target tflite was given"),
        ({"calibrator": "max", "data": "nowhere", "percentile": 0}, "percentile 0"),
        ({"image_size": 0}, "--image-size 0 was given"),
        ({"num_classes": 3}, "do not fit RepVGG-tiny with 3 classes"),
    ],
)
def test_bad_input_leaves_nothing(repquant, weights, tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.onnx").write_text("old")
    options = {"arch": "RepVGG-tiny", "num_classes": 2, "weights": weights, "output": "model.onnx"} | changes
    pairs = {f"--{key.replace('_', '-')}": value for key, value in options.items()}
    status, _, err = repquant("export", *(part for pair in pairs.items() for part in pair))
    assert status == 2
    assert message in err
    assert "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["there.onnx"]
    assert (tmp_path / "there.onnx").read_text() == "old"
