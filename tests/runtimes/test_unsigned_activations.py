import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from repquant.runtimes.onnxruntime import OnnxRuntime
from repquant.runtimes.openvino import OpenVinoRuntime
from repquant.runtimes.unsigned_activations import unsigned_activations

SCALE = np.float32(1 / 32)


@pytest.fixture
def pyramid():
    """A convolution by 1, and its output beside the maxima of its neighbors, on one signed grid."""
    constants = {
        "scale": SCALE,
        "zero": np.int8(0),
        "one": np.ones((1, 1, 1, 1), np.int8),
        "both": np.asarray([[[[1]], [[1]]]], np.int8).reshape(1, 2, 1, 1),
        "unit": np.float32(1),
    }
    grid = ["scale", "zero"]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", *grid], ["x_q"]),
        helper.make_node("DequantizeLinear", ["x_q", *grid], ["x_d"]),
        helper.make_node("DequantizeLinear", ["one", "unit", "zero"], ["one_d"]),
        helper.make_node("Conv", ["x_d", "one_d"], ["y"]),
        helper.make_node("QuantizeLinear", ["y", *grid], ["y_q"]),
        helper.make_node("DequantizeLinear", ["y_q", *grid], ["y_d"]),
        helper.make_node("MaxPool", ["y_d"], ["wide"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Concat", ["y_d", "wide"], ["parts"], axis=1),
        helper.make_node("QuantizeLinear", ["parts", *grid], ["parts_q"]),
        helper.make_node("DequantizeLinear", ["parts_q", *grid], ["parts_d"]),
        helper.make_node("DequantizeLinear", ["both", "unit", "zero"], ["both_d"]),
        helper.make_node("Conv", ["parts_d", "both_d"], ["sum"]),
    ]
    graph = helper.make_graph(
        nodes,
        "pyramid",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 4, 4])],
        [helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["n", 1, 4, 4])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.fixture
def image():
    return (np.random.default_rng(0).integers(-128, 128, (3, 1, 4, 4)) * SCALE).astype(np.float32)


def expected(image):
    padded = np.pad(image, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    return image + windows.max((4, 5))


@pytest.mark.parametrize("engine", [OnnxRuntime, OpenVinoRuntime])
def test_engines_compute_signed_pyramids_right(engine, pyramid, image, tmp_path):
    onnx.save(pyramid, tmp_path / "pyramid.onnx")
    np.testing.assert_array_equal(engine(tmp_path / "pyramid.onnx")(image), expected(image))


def test_activations_become_unsigned_and_weights_stay(pyramid):
    changed = unsigned_activations(pyramid)
    onnx.checker.check_model(changed, full_check=True)
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in changed.graph.initializer}
    pairs = [node for node in changed.graph.node if node.op_type == "QuantizeLinear" or node.input[0].endswith("_q")]
    zero_points = [values[node.input[2]] for node in pairs]
    assert [point.dtype for point in zero_points] == [np.uint8] * 6
    assert {int(point) for point in zero_points} == {128}
    assert values["one"].dtype == np.int8


def test_integers_that_somebody_else_reads_stay_signed(pyramid):
    pyramid.graph.output.append(helper.make_tensor_value_info("y_q", TensorProto.INT8, ["n", 1, 4, 4]))
    changed = unsigned_activations(pyramid)
    onnx.checker.check_model(changed, full_check=True)
    quantize = next(node for node in changed.graph.node if node.output[0] == "y_q")
    assert quantize.input[2] == "zero"
