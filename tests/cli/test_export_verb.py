import pytest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output": "model.pb"}, "output model.pb does not end in .onnx"),
        ({"output": "there.onnx"}, "output there.onnx exists; choose another file or pass --overwrite"),
        ({"output": "missing/model.onnx"}, "can't write to missing"),
        ({"calibrator": "median"}, "calibrator 'median' was given; allowed are max, percentile, mse, entropy"),
        ({"calibrator": "max"}, "INT8 needs images to calibrate on; pass --data or --calibration-data"),
        ({"calibrator": "max", "data": "nowhere"}, "data folder nowhere does not exist"),
        ({"calibrator": "max", "data": "nowhere", "target": "tflite"}, "unknown target 'tflite'"),
        ({"calibrator": "max", "data": "nowhere", "percentile": 0}, "percentile 0"),
        ({"image_size": 0}, "image size 0"),
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
