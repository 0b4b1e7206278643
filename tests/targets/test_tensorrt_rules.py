"""One test a rule: a file that does not meet it is found, with the node, and one that does is not."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from sketch import Sketch

from repquant.targets.finding import SEVERITIES
from repquant.targets.tensorrt import RULES, find


def found(sketch):
    return {(finding.rule.name, finding.node) for finding in find(sketch.graph())}


def in_integers(sketch):
    """A graph with one convolution, which other nodes can be put behind."""
    return sketch.conv(sketch.quantized(sketch.image, "in"))


def test_rules_have_names_sources_and_remedies():
    assert max(Counter(rule.name for rule in RULES).values()) == 1
    assert len(RULES) == 19
    for rule in RULES:
        assert rule.severity in SEVERITIES
        assert rule.source
        assert rule.remedy


def test_a_file_that_keeps_to_all_of_them(good):
    assert find(good.graph()) == []


def test_operator(sketch):
    s = sketch
    x = s.node("Det", s.node("FusedConv", s.image, name="fused", domain="com.microsoft"), name="det")
    assert {("operator", "fused"), ("operator", "det")} <= found(s.give(x))


@pytest.mark.parametrize(("opset", "is_found"), [(8, True), (9, False), (25, False), (26, True)])
def test_opset(opset, is_found):
    s = Sketch(opset=opset)
    s.give(s.node("Relu", s.image))
    assert (("opset", "") in found(s)) == is_found


@pytest.mark.parametrize(("kind", "is_found"), [(np.int32, True), (np.uint8, True), (np.int8, False)])
def test_type_behind_dequantize(sketch, kind, is_found):
    s = sketch
    bias = s.node(
        "DequantizeLinear", s.constant(np.ones(4, kind), "q"), s.constant(np.ones(4, np.float32), "s"), name="b", axis=0
    )
    s.give(s.node("Conv", s.quantized(s.image), s.weight(), bias, name="conv"))
    assert (("dequantized-type", "b") in found(s)) == is_found


def test_unsigned(sketch):
    s = sketch
    s.give(s.quantized(s.image, "unsigned", kind=np.uint8), s.quantized(s.image, "signed"))
    s.node("QuantizeLinear", s.image, s.constant(np.float32(1), "s"), name="by default")
    s.node("QuantizeLinear", s.image, "s", name="by attribute", output_dtype=TensorProto.INT8)
    assert {node for rule, node in found(s) if rule == "unsigned"} == {"unsigned/Q", "by default"}


def test_zero_point(sketch):
    sketch.give(sketch.quantized(sketch.image, "shifted", zero=3), sketch.quantized(sketch.image, "centered"))
    assert {node for rule, node in found(sketch) if rule == "zero-point"} == {"shifted/Q", "shifted/DQ"}


def test_a_zero_point_in_a_constant_node(sketch):
    s = sketch
    value = numpy_helper.from_array(np.int8(3))
    s.nodes.append(helper.make_node("Constant", [], ["three"], value=value))
    s.give(s.node("QuantizeLinear", s.image, s.constant(np.float32(1), "s"), "three", name="q"))
    assert ("zero-point", "q") in found(s)


@pytest.mark.parametrize(
    ("scale", "is_found"), [(0.0, True), (-1.0, True), (np.inf, True), (np.nan, True), (1e-30, False)]
)
def test_scale_value(sketch, scale, is_found):
    sketch.give(sketch.quantized(sketch.image, "grid", scale=scale))
    assert (("scale-value", "grid/Q") in found(sketch)) == is_found


def test_scale_that_is_computed(sketch):
    s = sketch
    scale = s.node("ReduceMax", s.image, name="max", keepdims=0)
    s.give(s.node("QuantizeLinear", s.image, scale, s.constant(np.int8(0), "z"), name="dynamic"))
    s.give(s.quantized(s.image, "static"))
    assert {node for rule, node in found(s) if rule == "scale-constant"} == {"dynamic"}


def test_scale_count(sketch):
    s = sketch
    s.give(s.conv(s.quantized(s.image), "wrong", s.weight("wrong", count=3)))
    s.give(s.conv(s.quantized(s.image), "right"))
    assert {node for rule, node in found(s) if rule == "scale-count"} == {"wrong/W"}


def test_as_many_zero_points_as_scales(sketch):
    s = sketch
    s.weight("w")
    s.constant(np.zeros((), np.int8), "w.z")
    assert ("scale-count", "w/W") in found(s)


@pytest.mark.parametrize(
    ("kind", "shape", "attributes", "right"),
    [
        ("Conv", (4, 4, 1, 1), {}, 0),
        ("ConvTranspose", (4, 4, 1, 1), {}, 1),
        ("Gemm", (4, 4), {"transB": 1}, 0),
        ("Gemm", (4, 4), {}, 1),
        ("MatMul", (4, 4), {}, 1),
    ],
)
def test_weight_axis(kind, shape, attributes, right):
    for axis in (0, 1):
        s = Sketch(shape=("batch", 4, 8, 8) if len(shape) == 4 else ("batch", 4))
        s.give(s.node(kind, s.quantized(s.image), s.weight("w", shape, axis), name="layer", **attributes))
        assert (("weight-axis", "w/W") in found(s)) == (axis != right)


def test_activation_axis(sketch):
    s = sketch
    grid = (s.constant(np.ones(4, np.float32), "s"), s.constant(np.zeros(4, np.int8), "z"))
    s.give(
        s.node("DequantizeLinear", s.node("QuantizeLinear", s.image, *grid, name="q", axis=1), *grid, name="dq", axis=1)
    )
    s.give(s.quantized(s.image, "per tensor"), s.conv(s.quantized(s.image)))
    assert {node for rule, node in found(s) if rule == "activation-axis"} == {"q", "dq"}


def test_layers_that_are_not_quantized(sketch):
    s = sketch
    s.give(s.conv(s.image, "no activation"))
    s.give(s.conv(s.quantized(s.image), "no weight", s.constant(np.ones((4, 4, 1, 1), np.float32), "w")))
    s.give(s.conv(s.node("MaxPool", s.quantized(s.image), kernel_shape=[1, 1]), "both"))
    assert {node for rule, node in found(s) if rule == "not-quantized"} == {"no activation", "no weight"}


@pytest.mark.parametrize("kind", ["Relu", "BatchNormalization", "HardSwish"])
def test_quantizer_inside_of_what_is_fused(sketch, kind):
    s = sketch
    more = [s.constant(np.ones(4, np.float32), f"n{i}") for i in range(4)] if kind == "BatchNormalization" else []
    s.give(s.node(kind, s.quantized(in_integers(s), "inside"), *more, name="activation"))
    assert ("inside-fusion", "inside/Q") in found(s)
    behind = Sketch()
    behind.constants |= {name: s.constants[name] for name in more}
    behind.give(behind.conv(behind.quantized(behind.node(kind, in_integers(behind), *more), "behind"), "next"))
    assert not any(rule == "inside-fusion" for rule, _ in found(behind))


def test_output_that_is_not_quantized_at_once(sketch):
    s = sketch
    y = s.node("Relu", in_integers(s), name="relu")
    s.give(s.node("Softmax", y, name="softmax"))
    assert ("not-directly-behind", "conv") in found(s)
    behind = Sketch()
    y = behind.node("Reshape", behind.node("Relu", in_integers(behind)), behind.constant(np.array([0, -1]), "shape"))
    behind.give(behind.quantized(y, "behind"))
    assert not any(rule == "not-directly-behind" for rule, _ in found(behind))


def test_residual(sketch):
    s = sketch
    s.give(s.node("Add", in_integers(s), s.node("Sigmoid", s.image), name="add"))
    assert ("residual", "add") in found(s)
    quantized = Sketch()
    quantized.give(quantized.node("Add", in_integers(quantized), quantized.quantized(quantized.image, "r"), name="add"))
    assert ("residual", "add") not in found(quantized)


@pytest.mark.parametrize(("scales", "is_found"), [((0.1, 0.1), False), ((0.1, 0.2), True), ((0.1, None), True)])
def test_concatenation(sketch, scales, is_found):
    s = sketch
    parts = [s.image if scale is None else s.quantized(s.image, f"part{i}", scale) for i, scale in enumerate(scales)]
    s.give(s.node("Concat", *parts, name="concat", axis=1))
    assert (("concatenation", "concat") in found(s)) == is_found


def test_pooling(sketch):
    s = sketch
    x = s.quantized(s.image)
    s.give(s.node("GlobalAveragePool", x, name="float behind"))
    s.give(s.quantized(s.node("GlobalAveragePool", s.image, name="float in front"), "q0"))
    s.give(s.quantized(s.node("GlobalAveragePool", x, name="right"), "q1"))
    s.give(s.node("MaxPool", x, name="commutes", kernel_shape=[2, 2]))
    assert {node for rule, node in found(s) if rule == "pooling"} == {"float behind", "float in front"}


def test_reduction(sketch):
    s = sketch
    axes = s.constant(np.array([2, 3]), "axes")
    s.give(
        s.node("ReduceMean", s.quantized(s.image), axes, name="of integers"),
        s.node("ReduceMean", s.image, axes, name="of floats"),
    )
    assert {node for rule, node in found(s) if rule == "reduction"} == {"of integers"}


@pytest.mark.parametrize(
    ("shape", "is_found"), [(("n", 4, 8, 8), False), (("n", 4, "h", 8), True), (("n", 4, 8, None), True)]
)
def test_dynamic_size(shape, is_found):
    s = Sketch(shape=shape)
    s.give(s.node("Relu", s.image))
    assert (("dynamic-size", "images") in found(s)) == is_found


def test_scale_type(sketch, good):
    s = sketch
    good.give(good.conv(good.image, "float"))
    assert ("scale-type", "") in found(good)
    for name in [name for name in s.constants if name.endswith(("scale", ".s"))]:
        values = np.frombuffer(s.constants[name].raw_data, np.float32).reshape(s.constants[name].dims)
        s.constant(values.astype(np.float16), name)
    assert ("scale-type", "") not in found(good)


def test_a_float_file_runs_in_float():
    s = Sketch()
    s.give(s.node("Relu", s.conv(s.image, weight=s.constant(np.ones((4, 4, 1, 1), np.float32), "w"))))
    assert found(s) == {("not-quantized", "conv")}


def test_nodes_without_names_are_called_by_what_they_give(sketch):
    sketch.nodes.append(helper.make_node("Det", [sketch.image], ["d"]))
    assert ("operator", "d") in found(sketch.give("d"))


def test_every_rule_has_a_test():
    text = Path(__file__).read_text(encoding="utf-8")
    assert all(f'"{rule.name}"' in text for rule in RULES)
