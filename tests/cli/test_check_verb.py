import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper


@pytest.fixture
def save(tmp_path):
    """Write a file that quantizes images and pools them; with `zero_point` 1 TensorRT refuses it."""

    def run(zero_point):
        grid = ["scale", "zero"]
        nodes = [
            helper.make_node("QuantizeLinear", ["images", *grid], ["q"], name="quantize"),
            helper.make_node("DequantizeLinear", ["q", *grid], ["dq"], name="dequantize"),
            helper.make_node("MaxPool", ["dq"], ["pooled"], name="pool", kernel_shape=[2, 2]),
            helper.make_node("QuantizeLinear", ["pooled", *grid], ["q2"], name="quantize2"),
            helper.make_node("DequantizeLinear", ["q2", *grid], ["y"], name="dequantize2"),
        ]
        graph = helper.make_graph(
            nodes,
            "small",
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, 8, 8])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(np.float32(0.1), "scale"), numpy_helper.from_array(np.int8(zero_point), "zero")],
        )
        path = tmp_path / "small.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
        return path

    return run


def test_nothing_to_refuse(repquant, headline, save):
    path = save(0)
    status, out, err = repquant("check", path, "--target", "tensorrt")
    assert status == 0, err
    assert headline(out) == {"file": str(path), "target": "tensorrt", "refused": 0, "counts": {}, "findings": []}
    assert "nothing in" in err


def test_what_is_refused_is_listed_and_ends_with_status_2(repquant, headline, save):
    path = save(1)
    status, out, err = repquant("check", path, "--target", "tensorrt")
    assert status == 2
    found = headline(out)
    assert (found["refused"], found["counts"]) == (4, {"refused": 4})
    assert found["findings"][0].keys() == {"node", "rule", "severity", "source", "remedy", "detail"}
    assert "\nrefused: quantize: its zero point is not 0 [zero-point]; quantize symmetrically" in err
    assert f"tensorrt refuses {path}: 4 findings, see above" in err
    assert json.loads(out) == found


def test_names_in_a_file_give_a_terminal_no_orders(repquant, save):
    path = save(1)
    model = onnx.load(path)
    model.graph.node[0].name = "\x1b[31m" + "x" * 1000
    onnx.save(model, path)
    _, out, err = repquant("check", path, "--target", "tensorrt")
    line = next(line for line in err.splitlines() if "its zero point" in line)
    assert line.startswith("refused: \\x1b[31mxxx")
    assert "... (1,005 characters): its zero point" in line
    assert "\x1b" not in out + err


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_what_one_target_refuses_another_may_take(repquant, headline, save, target):
    status, out, err = repquant("check", save(1), "--target", target)
    assert status == 0, err
    assert headline(out)["refused"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("missing.onnx", "--target", "tensorrt"), "model file missing.onnx does not exist"),
        (("text.onnx", "--target", "openvino"), "text.onnx is no ONNX file"),
        (("text.onnx", "--target", "coreml"), "--target coreml was given; allowed is one of tensorrt, onnxruntime"),
        (("text.onnx",), "required: --target"),
        (("--target", "tensorrt"), "required: FILE"),
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
    from repquant.export import files as writer

    write = writer.export_graph

    def export_wrongly(graph, path, *arguments, **named):
        size = write(graph, path, *arguments, **named)
        proto = onnx.load(path)
        proto.graph.node.append(onnx.helper.make_node("Det", ["images"], ["d"], name="planted"))
        onnx.save(proto, path)
        return size

    monkeypatch.setattr(writer, "export_graph", export_wrongly)
    status, _, err = repquant(
        "export", "--weights", weights, *small_options, "--output", tmp_path / "m.onnx", "--data", photographs,
        "--calibrator", "max", "--calibration-images", 4, "--target", "tensorrt", "--rounding", "nearest",
    )  # fmt: skip
    assert status == 1
    assert "a fault of repquant" in err
    assert "refuses" in err
