import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

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


def results(model, x=(-100.0, -0.3, 0.24, 0.26, 0.75, 100.0)):
    """What the graph gives by the definition of its operators."""
    images = np.array(x, np.float32).reshape(1, 1, 2, 3)
    return ReferenceEvaluator(model).run(None, {"x": images})


def add_output(model, name, element=TensorProto.FLOAT):
    model.graph.output.append(helper.make_tensor_value_info(name, element, ["n", 1, 2, 3]))


def node_of(model, kind):
    return next(node for node in model.graph.node if node.op_type == kind)


def check_same_values(model, rewrite):
    """The rewritten graph is a legal one and gives the same; returned for more questions."""
    onnx.checker.check_model(model, full_check=True)
    rewritten = rewrite(model)
    onnx.checker.check_model(rewritten, full_check=True)
    for expected, found in zip(results(model), results(rewritten), strict=True):
        np.testing.assert_array_equal(expected, found)
    return rewritten


both = pytest.mark.parametrize("rewrite", [quantize_before_relu, unsigned_after_relu])


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


@both
@pytest.mark.parametrize("reader", ["node", "outside", "inner graph", "another quantizer"])
def test_other_readers_of_the_relu_get_its_float_values(rewrite, reader):
    model = relu_model(np.int8, 0)
    nodes = model.graph.node
    if reader == "node":
        nodes.append(helper.make_node("Identity", ["relu"], ["also"]))
    elif reader == "inner graph":
        inner = helper.make_tensor_value_info("inner", TensorProto.FLOAT, ["n", 1, 2, 3])
        branch = helper.make_graph([helper.make_node("Identity", ["relu"], ["inner"])], "branch", [], [inner])
        model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
        nodes.append(helper.make_node("If", ["yes"], ["also"], then_branch=branch, else_branch=branch))
    elif reader == "another quantizer":
        model.graph.initializer.append(numpy_helper.from_array(np.float32(0.7), "other"))
        nodes.append(helper.make_node("QuantizeLinear", ["relu", "other", "zero_point"], ["also_q"]))
        nodes.append(helper.make_node("DequantizeLinear", ["also_q", "other", "zero_point"], ["also"]))
    add_output(model, "relu" if reader == "outside" else "also")
    rewritten = check_same_values(model, rewrite)
    if rewrite is quantize_before_relu:
        assert rewritten == model


@both
def test_no_zero_point_is_unsigned_and_stays(rewrite):
    model = relu_model(np.int8, 0)
    for kind in ("QuantizeLinear", "DequantizeLinear"):
        del node_of(model, kind).input[2:]
    assert check_same_values(model, rewrite) == model


@both
def test_no_zero_point_for_the_way_back(rewrite):
    model = relu_model(np.int8, 0)
    del node_of(model, "DequantizeLinear").input[2:]
    assert check_same_values(model, rewrite) != model


@both
@pytest.mark.parametrize("origin", ["node", "computed", "for each channel"])
def test_a_scale_that_is_not_one_constant_stays(rewrite, origin):
    model = relu_model(np.int8, 0)
    (scale,) = (tensor for tensor in model.graph.initializer if tensor.name == "scale")
    if origin == "for each channel":
        for name, value in (("scale", np.array([0.5], np.float32)), ("zero_point", np.zeros(1, np.int8))):
            (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
            tensor.CopyFrom(numpy_helper.from_array(value, name))
    elif origin == "node":
        model.graph.initializer.remove(scale)
        model.graph.node.insert(0, helper.make_node("Constant", [], ["scale"], value=scale))
    else:
        scale.name = "given_scale"
        model.graph.node.insert(0, helper.make_node("Abs", ["given_scale"], ["scale"]))
    assert check_same_values(model, rewrite) == model


@both
def test_integers_that_others_read_keep_their_type(rewrite):
    model = relu_model(np.int8, 0)
    add_output(model, "q", TensorProto.INT8)
    assert "Clip" not in operators(check_same_values(model, rewrite))


@both
def test_a_way_back_with_another_zero_point_stays(rewrite):
    model = relu_model(np.int8, 0)
    model.graph.initializer.append(numpy_helper.from_array(np.int8(3), "three"))
    node_of(model, "DequantizeLinear").input[2] = "three"
    assert "Clip" not in operators(check_same_values(model, rewrite))


@both
@pytest.mark.parametrize(("dtype", "zero_point"), [(np.uint8, 0), (np.int8, -128), (np.uint8, 128)])
def test_other_grids_stay(dtype, zero_point, rewrite):
    model = relu_model(dtype, zero_point)
    assert rewrite(model) == model


@both
def test_no_value_changes(rewrite):
    rewritten = check_same_values(relu_model(np.int8, 0), rewrite)
    assert results(rewritten)[0].flatten().tolist() == [0.0, 0.0, 0.0, 0.5, 1.0, 63.5]
