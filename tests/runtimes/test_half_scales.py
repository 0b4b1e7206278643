import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from repquant.runtimes.half_scales import widen_half


def half_model(*, quantized=True, ends=TensorProto.FLOAT):
    """Cast to FP16, quantize and dequantize with an FP16 scale, add an FP16 constant, cast back."""
    constants = [
        numpy_helper.from_array(np.float16(0.1), "scale"),
        numpy_helper.from_array(np.int8(0), "zero"),
        numpy_helper.from_array(np.float16(0.3), "bias"),
    ]
    grid = ["scale", "zero"]
    middle = [
        helper.make_node("QuantizeLinear", ["half", *grid], ["q"]),
        helper.make_node("DequantizeLinear", ["q", *grid], ["dq"]),
    ]
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
        *(middle if quantized else [helper.make_node("Mul", ["half", "scale"], ["dq"])]),
        helper.make_node("Add", ["dq", "bias"], ["sum"]),
        helper.make_node("Cast", ["sum"], ["y"], to=ends),
    ]
    graph = helper.make_graph(
        nodes,
        "half",
        [helper.make_tensor_value_info("x", ends, ["n", 2])],
        [helper.make_tensor_value_info("y", ends, ["n", 2])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def test_values_stay_and_types_become_float32():
    model = half_model()
    wide = widen_half(model)
    onnx.checker.check_model(wide, full_check=True)
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in wide.graph.initializer}
    assert arrays["scale"].dtype == arrays["bias"].dtype == np.float32
    assert (arrays["scale"], arrays["bias"], arrays["zero"].dtype) == (np.float16(0.1), np.float16(0.3), np.int8)
    assert all(attribute.i == TensorProto.FLOAT for node in wide.graph.node for attribute in node.attribute)
    assert model == half_model()  # what was given is left alone


@pytest.mark.parametrize("settings", [{"quantized": False}, {"ends": TensorProto.FLOAT16}])
def test_other_models_in_half_are_left_alone(settings):
    assert widen_half(half_model(**settings)) == half_model(**settings)
