import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from repquant.runtimes.integer_relu import quantize_before_relu, unsigned_after_relu


def relu_model(dtype, zero_point):
    """Conv -> Relu -> Q -> DQ with one channel, weight 1 and scale 0.5."""
    tensors = {
        "weight": np.ones((1, 1, 1, 1), np.float32),
        "scale": np.float32(0.5),
        "zero_point": np.array(zero_point, dtype),
    }
    nodes = [
        helper.make_node("Conv", ["x", "weight"], ["conv"]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("QuantizeLinear", ["relu", "scale", "zero_point"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero_point"], ["y"]),
    ]
    shape = ["n", 1, 2, 3]
    graph = helper.make_graph(
        nodes,
        "relu",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def operators(model):
    return [node.op_type for node in model.graph.node]


def test_symmetric_int8_is_quantized_before_the_relu_too():
    model = relu_model(np.int8, 0)
    rewritten = quantize_before_relu(model)
    onnx.checker.check_model(rewritten, full_check=True)
    pair = ["QuantizeLinear", "DequantizeLinear"]
    assert operators(rewritten) == ["Conv", *pair, "Relu", *pair]
    assert operators(model) == ["Conv", "Relu", *pair]


def test_symmetric_int8_is_unsigned_and_clipped_at_its_end():
    model = relu_model(np.int8, 0)
    rewritten = unsigned_after_relu(model)
    onnx.checker.check_model(rewritten, full_check=True)
    assert operators(rewritten) == ["Conv", "Clip", "QuantizeLinear", "DequantizeLinear"]
    assert operators(model) == ["Conv", "Relu", "QuantizeLinear", "DequantizeLinear"]


def test_other_readers_of_the_relu_keep_it():
    model = relu_model(np.int8, 0)
    model.graph.node.append(helper.make_node("Identity", ["relu"], ["also"]))
    model.graph.output.append(helper.make_tensor_value_info("also", TensorProto.FLOAT, ["n", 1, 2, 3]))
    assert "Relu" in operators(unsigned_after_relu(model))


@pytest.mark.parametrize("rewrite", [quantize_before_relu, unsigned_after_relu])
@pytest.mark.parametrize(("dtype", "zero_point"), [(np.uint8, 0), (np.int8, -128), (np.uint8, 128)])
def test_other_grids_stay(dtype, zero_point, rewrite):
    model = relu_model(dtype, zero_point)
    assert rewrite(model) == model


@pytest.mark.parametrize("rewrite", [quantize_before_relu, unsigned_after_relu])
def test_no_value_changes(rewrite):
    from onnx.reference import ReferenceEvaluator

    model = relu_model(np.int8, 0)
    x = np.array([[-100.0, -0.3, 0.24], [0.26, 0.75, 100.0]], np.float32).reshape(1, 1, 2, 3)
    expected, found = (ReferenceEvaluator(m).run(None, {"x": x})[0] for m in (model, rewrite(model)))
    assert np.array_equal(expected, found)
    assert expected.flatten().tolist() == [0.0, 0.0, 0.0, 0.5, 1.0, 63.5]
