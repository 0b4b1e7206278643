"""What ONNX Runtime and OpenVINO fall back to float for, on the graph that they execute."""

import numpy as np
import onnx
import pytest
from sketch import Sketch

from repquant.targets import onnxruntime, openvino
from repquant.targets.cpu_rules import may_saturate

TARGETS = pytest.mark.parametrize("target", [onnxruntime, openvino], ids=["onnxruntime", "openvino"])


def found(target, sketch, has_exact_products=True):
    return {
        (finding.rule.name, finding.node)
        for finding in target.find(sketch.graph(), has_exact_products=has_exact_products)
    }


def network(largest=60, unquantized=()):
    """Two convolutions as the target onnxruntime has them: unsigned activations, quantized behind the ReLU."""
    s = Sketch()
    x = s.quantized(s.image, "images")
    for name in ("a", "b"):
        x = s.node("Relu", s.conv(x, name, s.weight(name, largest=largest)), name=f"{name}.relu")
        if name not in unquantized:
            x = s.quantized(x, f"{name}.out", kind=np.uint8)
    return s.give(x)


@TARGETS
def test_a_file_that_runs_in_integers(target):
    assert found(target, network()) == set()


@TARGETS
def test_a_layer_in_float_is_named(target):
    names = found(target, network(unquantized=("a",)))
    assert ("integer-operator", "b") in names or ("integer-operator", "b/WithoutBiases") in names


def test_what_moves_integers_runs_in_integers():
    """The upsampling in the neck of a detector."""
    s = Sketch()
    x = s.quantized(s.node("Relu", s.conv(s.quantized(s.image, "images", kind=np.uint8), "a")), "a.out", kind=np.uint8)
    twice = s.constant(np.array([1, 1, 2, 2], np.float32), "twice")
    up = s.quantized(s.node("Resize", x, "", twice, name="up"), "up.out", kind=np.uint8)
    y = s.quantized(s.node("Relu", s.conv(up, "b")), "b.out", kind=np.uint8)
    assert found(onnxruntime, s.give(y)) == set()


@TARGETS
def test_weights_that_saturate_without_vnni(target):
    assert ("saturation", "") in found(target, network(largest=127), has_exact_products=False)
    assert ("saturation", "") not in found(target, network(largest=127), has_exact_products=True)
    assert ("saturation", "") not in found(target, network(largest=64), has_exact_products=False)


@TARGETS
def test_a_file_that_does_not_load_is_refused(target):
    s = network()
    s.nodes.append(onnx.helper.make_node("NoSuchOperator", [s.image], ["y"], name="unknown"))
    (finding,) = target.find(s.give("y").graph(), has_exact_products=True)
    assert finding.is_refused
    assert finding.rule.name == "loads"
    assert "NoSuchOperator" in finding.detail


def test_symmetric_activations_before_a_relu_run_in_float_in_onnxruntime(good):
    assert {("integer-operator", "a"), ("integer-operator", "b")} <= found(onnxruntime, good)


@pytest.mark.parametrize(("largest", "expected"), [(64, False), (65, True)])
def test_the_largest_weight_that_two_products_of_fit(largest, expected):
    s = Sketch()
    s.weight(largest=largest)
    assert may_saturate(s.model()) == expected
    assert 2 * 255 * 64 < 2**15 < 2 * 255 * 65


def test_float_weights_may_become_any_integer(sketch):
    sketch.quantized(sketch.constant(np.ones((4, 4, 1, 1), np.float32), "w"))
    assert may_saturate(sketch.model())
