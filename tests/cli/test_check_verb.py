import json

import onnx
import pytest


@pytest.fixture
def files(repquant, weights, photographs, small_options, tmp_path):
    """One file for tensorrt and one for onnxruntime, as `export` writes them."""
    for target in ("tensorrt", "onnxruntime"):
        status, _, err = repquant(
            "export", "--weights", weights, *small_options, "--output", tmp_path / f"{target}.onnx",
            "--data", photographs, "--calibrator", "max", "--calibration-images", 4, "--target", target,
            "--rounding", "nearest",
        )  # fmt: skip
        assert status == 0, err
    return tmp_path


def test_nothing_to_refuse(repquant, headline, files):
    status, out, err = repquant("check", files / "tensorrt.onnx", "--target", "tensorrt")
    assert status == 0, err
    assert headline(out) | {"file": ""} == {
        "file": "",
        "target": "tensorrt",
        "refused": 0,
        "counts": {},
        "findings": [],
    }
    assert "nothing in" in err


def test_what_is_refused_is_listed_and_ends_with_status_2(repquant, headline, files):
    status, out, err = repquant("check", files / "onnxruntime.onnx", "--target", "tensorrt")
    assert status == 2
    found = headline(out)
    assert found["refused"] == found["counts"]["refused"] > 0
    (first, *_) = found["findings"]
    assert first.keys() == {"node", "rule", "severity", "source", "remedy", "detail"}
    assert any(line.startswith("refused: stem.conv.input/QuantizeLinear") for line in out.splitlines())
    assert f"tensorrt refuses {files / 'onnxruntime.onnx'}: {found['refused']} findings" in err
    assert json.loads(out.splitlines()[-1]) == found


def test_what_runs_in_float_alone_is_no_error(repquant, headline, files):
    status, out, _ = repquant("check", files / "onnxruntime.onnx", "--target", "onnxruntime")
    assert status == 0
    assert headline(out)["counts"].get("refused", 0) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("missing.onnx", "--target", "tensorrt"), "model file missing.onnx does not exist"),
        (("text.onnx", "--target", "openvino"), "text.onnx is no ONNX file"),
        (("text.onnx", "--target", "coreml"), "target 'coreml' was given; allowed are tensorrt, onnxruntime"),
        (("text.onnx",), "target"),
        (("--target", "tensorrt"), "file"),
    ],
)
def test_bad_input(repquant, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.onnx").write_text("no model")
    status, _, err = repquant("check", *arguments)
    assert status == 2
    assert message in err
    assert "Traceback" not in err


def test_a_file_of_ours_that_its_target_refuses_is_an_error_of_ours(
    repquant, weights, photographs, small_options, tmp_path, monkeypatch
):
    from repquant.export import onnx as writer

    write = writer.export_onnx

    def export_wrongly(model, path, image_size, target=None):
        size = write(model, path, image_size, target)
        proto = onnx.load(path)
        proto.graph.node.append(onnx.helper.make_node("Det", ["images"], ["d"], name="planted"))
        onnx.save(proto, path)
        return size

    monkeypatch.setattr(writer, "export_onnx", export_wrongly)
    with pytest.raises(
        AssertionError, match=r"was written for tensorrt, which refuses it; please report this: .*planted"
    ):
        repquant(
            "export", "--weights", weights, *small_options, "--output", tmp_path / "m.onnx", "--data", photographs,
            "--calibrator", "max", "--calibration-images", 4, "--target", "tensorrt", "--rounding", "nearest",
        )  # fmt: skip
