"""What is rewritten in a file for the runtimes that will read it."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from repquant.export.circular import unwrap_padding
from repquant.export.pooling import pad_before_average
from repquant.export.value_names import name_ends


def model_of(nodes, constants, output, shape=("n", 1, 4, 5)):
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["n", 1, "h", "w"])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def outputs_of(model, x):
    onnx.checker.check_model(model, full_check=True)
    return ReferenceEvaluator(model).run(None, {model.graph.input[0].name: x})[0]


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(size=(2, 1, 4, 5)).astype(np.float32)


@pytest.mark.parametrize("pads", [(1, 2, 3, 0), (0, 0, 0, 2), (2, 0, 0, 0)])
def test_wrapped_padding_is_slices_and_concatenations(x, pads):
    widths = np.asarray([0, 0, *pads[:2], 0, 0, *pads[2:]], np.int64)
    pad = helper.make_node("Pad", ["x", "widths"], ["y"], mode="wrap")
    model = unwrap_padding(model_of([pad, helper.make_node("Relu", ["y"], ["z"])], {"widths": widths}, "z"))
    assert "Pad" not in {node.op_type for node in model.graph.node}
    expected = np.pad(x, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])), mode="wrap")
    np.testing.assert_array_equal(outputs_of(model, x), np.maximum(expected, 0))


@pytest.mark.parametrize(("zero_point", "pads"), [(100, 1), (0, 0)])
def test_averages_that_count_their_padding_read_a_padded_tensor(x, zero_point, pads):
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("AveragePool", ["d"], ["y"], kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1),
    ]
    model = model_of(nodes, {"scale": np.float32(0.02), "zero": np.uint8(zero_point)}, "y")
    changed = pad_before_average(model)
    assert sum(node.op_type == "Pad" for node in changed.graph.node) == pads
    np.testing.assert_allclose(outputs_of(changed, x), outputs_of(model, x), atol=1e-6)


def test_a_value_that_is_given_out_twice_or_as_it_came_in_has_a_copy(x):
    model = model_of([helper.make_node("Relu", ["x"], ["y"])], {}, "y")
    model.graph.output.extend([model.graph.output[0], model.graph.input[0]])
    named = name_ends(model, ["image"], ["first", "second", "third"])
    onnx.checker.check_model(named, full_check=True)
    first, second, third = ReferenceEvaluator(named).run(None, {"image": x})
    np.testing.assert_array_equal(first, np.maximum(x, 0))
    np.testing.assert_array_equal(second, first)
    np.testing.assert_array_equal(third, x)


def test_ends_are_named_whatever_the_values_inside_are_called(x):
    nodes = [helper.make_node("Relu", ["x"], ["linear"]), helper.make_node("Neg", ["linear"], ["image"])]
    model = name_ends(model_of(nodes, {}, "image"), ["image"], ["linear"])
    assert [value.name for value in model.graph.input] == ["image"]
    assert [value.name for value in model.graph.output] == ["linear"]
    np.testing.assert_array_equal(outputs_of(model, x), -np.maximum(x, 0))
