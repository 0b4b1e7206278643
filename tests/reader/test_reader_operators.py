"""Each operator of the table computes what ONNX Runtime computes."""

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import helper
from onnx_files import model_of, read, save

from repquant.errors import InputError
from repquant.graph.capture import capture

GENERATOR = np.random.default_rng(0)


def floats(*shape):
    return GENERATOR.standard_normal(shape).astype(np.float32)


def whole(*values):
    return np.array(values, np.int64)


IMAGE = floats(2, 4, 6, 8)
LINE = floats(2, 4, 9)
ROWS = floats(2, 6)
ONE = np.float32(1.5)

# Operator, data, further constants and attributes.
CASES = {
    "abs": ("Abs", IMAGE, [], {}),
    "add": ("Add", IMAGE, [floats(4, 1, 1)], {}),
    "arg max": ("ArgMax", ROWS, [], {"axis": 1}),
    "average pool": ("AveragePool", IMAGE, [], {"kernel_shape": [2, 3], "strides": [2, 1]}),
    "average pool, padded": ("AveragePool", IMAGE, [], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    "average pool, padding counted": (
        "AveragePool", IMAGE, [], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1},
    ),
    "average pool, uneven": ("AveragePool", IMAGE, [], {"kernel_shape": [3, 3], "pads": [0, 0, 1, 1]}),
    "average pool, uneven, counted": (
        "AveragePool", IMAGE, [], {"kernel_shape": [3, 3], "pads": [0, 0, 1, 1], "count_include_pad": 1},
    ),
    "average pool, rounded up": ("AveragePool", IMAGE, [], {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    "average pool, same": (
        "AveragePool", IMAGE, [], {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
    ),
    "batch normalization": (
        "BatchNormalization", IMAGE, [floats(4), floats(4), floats(4), floats(4) ** 2 + 1], {"epsilon": 1e-3},
    ),
    "cast": ("Cast", IMAGE, [], {"to": 7}),
    "celu": ("Celu", IMAGE, [], {"alpha": 0.5}),
    "clip": ("Clip", IMAGE, [np.float32(0), np.float32(0.6)], {}),
    "clip below": ("Clip", IMAGE, [np.float32(0)], {}),
    "clip above": ("Clip", IMAGE, [None, np.float32(0.5)], {}),
    "concat": ("Concat", IMAGE, ["x"], {"axis": -3}),
    "conv": ("Conv", IMAGE, [floats(8, 2, 3, 3), floats(8)], {"group": 2, "pads": [1, 1, 1, 1], "strides": [2, 1]}),
    "conv, dilated": ("Conv", IMAGE, [floats(5, 4, 3, 2)], {"dilations": [2, 3]}),
    "conv, uneven": ("Conv", IMAGE, [floats(5, 4, 3, 3)], {"pads": [0, 1, 2, 1]}),
    "conv, same upper": ("Conv", IMAGE, [floats(5, 4, 3, 3)], {"auto_pad": "SAME_UPPER", "strides": [2, 3]}),
    "conv, same lower": ("Conv", IMAGE, [floats(5, 4, 2, 4)], {"auto_pad": "SAME_LOWER"}),
    "conv, valid": ("Conv", IMAGE, [floats(5, 4, 2, 4)], {"auto_pad": "VALID"}),
    "conv of a line": ("Conv", LINE, [floats(8, 1, 3)], {"group": 4, "pads": [1, 1]}),
    "transposed conv": (
        "ConvTranspose", IMAGE, [floats(4, 3, 3, 3), floats(3)],
        {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]},
    ),
    "transposed conv, uneven": (
        "ConvTranspose", IMAGE, [floats(4, 2, 4, 3)], {"strides": [2, 2], "pads": [1, 0, 2, 1], "group": 2},
    ),
    "transposed conv of a line": ("ConvTranspose", LINE, [floats(4, 3, 3)], {"strides": [2]}),
    "cumulative sum": ("CumSum", ROWS, [np.int64(1)], {}),
    "depth to space": ("DepthToSpace", IMAGE, [], {"blocksize": 2}),
    "depth to space, columns first": ("DepthToSpace", IMAGE, [], {"blocksize": 2, "mode": "CRD"}),
    "div": ("Div", IMAGE, [ONE], {}),
    "dropout": ("Dropout", IMAGE, [np.float32(0.5)], {}),
    "einsum": ("Einsum", IMAGE, [floats(5, 8)], {"equation": "bchw,kw->bchk"}),
    "elu": ("Elu", IMAGE, [], {"alpha": 0.5}),
    "erf": ("Erf", IMAGE, [], {}),
    "exp": ("Exp", IMAGE, [], {}),
    "expand": ("Expand", floats(2, 1, 3), [whole(1, 4, 1)], {}),
    "flatten": ("Flatten", IMAGE, [], {}),
    "flatten at 2": ("Flatten", IMAGE, [], {"axis": 2}),
    "flatten at the last": ("Flatten", IMAGE, [], {"axis": -1}),
    "floor": ("Floor", IMAGE, [], {}),
    "gather one": ("Gather", IMAGE, [np.int64(-1)], {"axis": 1}),
    "gather some": ("Gather", IMAGE, [whole(3, 0, -2)], {"axis": 1}),
    "gather a table": ("Gather", IMAGE, [np.array([[0, 3], [2, 1]])], {"axis": 2}),
    "gather elements": ("GatherElements", ROWS, [np.array([[0, 3, -1], [2, 1, 1]])], {"axis": 1}),
    "gather points": ("GatherND", IMAGE, [np.array([[0, 3], [-1, 1], [1, 1]])], {}),
    "gelu": ("Gelu", IMAGE, [], {}),
    "gelu, tanh": ("Gelu", IMAGE, [], {"approximate": "tanh"}),
    "gemm": ("Gemm", ROWS, [floats(5, 6), floats(5)], {"transB": 1}),
    "gemm, not transposed": ("Gemm", ROWS, [floats(6, 5), floats(1, 5)], {}),
    "gemm, scaled": ("Gemm", ROWS, [floats(6, 5), floats(5)], {"alpha": 0.5, "beta": 2.0}),
    "gemm, a number for the bias": ("Gemm", ROWS, [floats(6, 5), floats(1)], {}),
    "global average": ("GlobalAveragePool", IMAGE, [], {}),
    "global average of a line": ("GlobalAveragePool", LINE, [], {}),
    "global maximum": ("GlobalMaxPool", IMAGE, [], {}),
    "group normalization": ("GroupNormalization", IMAGE, [floats(4), floats(4)], {"num_groups": 2}),
    "hard sigmoid": ("HardSigmoid", IMAGE, [], {}),
    "hard sigmoid of torch": ("HardSigmoid", IMAGE, [], {"alpha": 1 / 6}),
    "hardswish": ("HardSwish", IMAGE, [], {}),
    "instance normalization": ("InstanceNormalization", IMAGE, [floats(4), floats(4)], {}),
    "layer normalization": ("LayerNormalization", IMAGE, [floats(8), floats(8)], {"epsilon": 1e-3}),
    "layer normalization of two": ("LayerNormalization", IMAGE, [floats(6, 8)], {"axis": 2}),
    "leaky relu": ("LeakyRelu", IMAGE, [], {}),
    "log": ("Log", np.abs(IMAGE) + 1, [], {}),
    "log softmax": ("LogSoftmax", IMAGE, [], {"axis": 1}),
    "local response": ("LRN", IMAGE, [], {"size": 3, "alpha": 0.01}),
    "matmul": ("MatMul", LINE, [floats(9, 3)], {}),
    "max": ("Max", IMAGE, [floats(8)], {}),
    "max pool": ("MaxPool", IMAGE, [], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "max pool, uneven": ("MaxPool", IMAGE, [], {"kernel_shape": [3, 3], "pads": [0, 0, 2, 1]}),
    "max pool, much padding": (
        "MaxPool", IMAGE, [], {"kernel_shape": [2, 2], "pads": [1, 1, 1, 1], "dilations": [2, 2]},
    ),
    "max pool, rounded up": ("MaxPool", IMAGE, [], {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    "max pool of a line": ("MaxPool", LINE, [], {"kernel_shape": [2], "strides": [2]}),
    "min": ("Min", IMAGE, [floats(8)], {}),
    "mish": ("Mish", IMAGE, [], {}),
    "mul": ("Mul", IMAGE, [floats(4, 1, 1)], {}),
    "neg": ("Neg", IMAGE, [], {}),
    "pad": ("Pad", IMAGE, [whole(0, 0, 1, 2, 0, 0, 0, 1), np.float32(0.5)], {}),
    "pad, reflected": ("Pad", IMAGE, [whole(0, 0, 1, 2, 0, 0, 2, 1)], {"mode": "reflect"}),
    "pad, repeated": ("Pad", IMAGE, [whole(0, 0, 1, 2, 0, 0, 2, 1)], {"mode": "edge"}),
    "pad of axes": ("Pad", IMAGE, [whole(1, 2), None, whole(-1)], {}),
    "pow": ("Pow", np.abs(IMAGE), [ONE], {}),
    "prelu": ("PRelu", IMAGE, [floats(4, 1, 1)], {}),
    "prelu of one": ("PRelu", IMAGE, [floats(1)], {}),
    "prelu of rows": ("PRelu", IMAGE, [floats(8)], {}),
    "reciprocal": ("Reciprocal", np.abs(IMAGE) + 1, [], {}),
    "norm": ("ReduceL2", IMAGE, [whole(1)], {}),
    "reduce max": ("ReduceMax", IMAGE, [whole(2, 3)], {"keepdims": 0}),
    "reduce mean": ("ReduceMean", IMAGE, [whole(2, 3)], {}),
    "reduce min": ("ReduceMin", IMAGE, [whole(-1)], {}),
    "reduce sum": ("ReduceSum", IMAGE, [whole(1)], {}),
    "relu": ("Relu", IMAGE, [], {}),
    "reshape": ("Reshape", IMAGE, [whole(0, 8, -1)], {}),
    "resize": ("Resize", IMAGE, [None, np.float32([1, 1, 2, 2])], {"mode": "nearest"}),
    "resize, rounded up": (
        "Resize", IMAGE, [None, np.float32([1, 1, 3, 4])], {"mode": "nearest", "nearest_mode": "round_prefer_ceil"},
    ),
    "resize, asymmetric": (
        "Resize", IMAGE, [None, None, whole(2, 4, 9, 12)],
        {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
    ),
    "resize, exact": (
        "Resize", IMAGE, [None, None, whole(2, 4, 9, 12)], {"mode": "nearest", "nearest_mode": "round_prefer_ceil"},
    ),
    "resize, linear": ("Resize", IMAGE, [None, np.float32([1, 1, 1.5, 2])], {"mode": "linear"}),
    "resize of axes": ("Resize", IMAGE, [None, None, whole(4, 5)], {"mode": "linear", "axes": [2, 3]}),
    "resize, aligned": (
        "Resize", IMAGE, [None, None, whole(2, 4, 4, 5)],
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
    ),
    "resize, cubic": ("Resize", IMAGE, [None, np.float32([1, 1, 2, 2])], {"mode": "cubic"}),
    "round": ("Round", IMAGE * 3, [], {}),
    "selu": ("Selu", IMAGE, [], {}),
    "sigmoid": ("Sigmoid", IMAGE, [], {}),
    "sign": ("Sign", IMAGE, [], {}),
    "sin": ("Sin", IMAGE, [], {}),
    "slice": ("Slice", IMAGE, [whole(1, -5), whole(9**9, -1), whole(2, 3), whole(2, 1)], {}),
    "slice backwards": ("Slice", IMAGE, [whole(-1), whole(-(2**60)), whole(3), whole(-2)], {}),
    "softmax": ("Softmax", IMAGE, [], {"axis": 1}),
    "softplus": ("Softplus", IMAGE, [], {}),
    "softsign": ("Softsign", IMAGE, [], {}),
    "space to depth": ("SpaceToDepth", IMAGE, [], {"blocksize": 2}),
    "sqrt": ("Sqrt", np.abs(IMAGE) + 1, [], {}),
    "squeeze": ("Squeeze", floats(2, 1, 4, 1), [whole(1, -1)], {}),
    "sub": ("Sub", IMAGE, [floats(4, 1, 1)], {}),
    "sum": ("Sum", IMAGE, [floats(8), floats(1)], {}),
    "tanh": ("Tanh", IMAGE, [], {}),
    "tile": ("Tile", LINE, [whole(1, 2, 3)], {}),
    "transpose": ("Transpose", IMAGE, [], {"perm": [0, 2, 3, 1]}),
    "unsqueeze": ("Unsqueeze", LINE, [whole(-1, 1)], {}),
}  # fmt: skip


def written(kind, data, more, attributes, opset=21, outputs=1):
    is_constant = [value is not None and not isinstance(value, str) for value in more]
    names = [f"c{place}" if constant else more[place] or "" for place, constant in enumerate(is_constant)]
    constants = {f"c{place}": np.asarray(more[place]) for place, constant in enumerate(is_constant) if constant}
    results = ["y", *(f"y{place}" for place in range(1, outputs))]
    node = helper.make_node(kind, ["x", *names], results, name="node", **attributes)
    return model_of([node], {"x": data}, constants, opset, open_batch=True)


CAPTURED = {
    "conv, same upper", "expand", "flatten at 2", "gather a table", "pad of axes", "resize of axes", "slice backwards",
}  # fmt: skip
"""Those where an exporter might not follow, or take the batch for a number."""


def compare(path, data, is_captured=True):
    expected = onnxruntime.InferenceSession(path).run(None, {"x": data})
    modules = [read(path)]
    if is_captured:
        modules.append(capture(modules[0], torch.from_numpy(data)))
        assert modules[1].meta["repquant"].dynamic_batch
    for module in modules:
        with torch.no_grad():
            given = module(torch.from_numpy(data))
        given = list(given.values()) if isinstance(given, dict) else [given]
        for ours, theirs in zip(given, expected, strict=True):
            torch.testing.assert_close(ours, torch.from_numpy(theirs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_an_operator(name, tmp_path):
    kind, data, more, attributes = CASES[name]
    compare(save(written(kind, data, more, attributes), tmp_path / "node.onnx"), data, name in CAPTURED)


@pytest.mark.parametrize(
    ("kind", "more", "attributes"),
    [
        ("ReduceMean", [], {"axes": [2, 3]}),
        ("ReduceMax", [], {"axes": [-1], "keepdims": 0}),
        ("Pad", [whole(0, 0, 1, 2, 0, 0, 0, 1)], {}),
        ("Split", [whole(1, 3)], {"axis": 1}),
        ("GroupNormalization", [floats(2), floats(2)], {"num_groups": 2}),
    ],
)
def test_an_operator_of_an_older_opset(kind, more, attributes, tmp_path):
    model = written(
        kind,
        IMAGE,
        more,
        attributes,
        opset=18 if kind == "GroupNormalization" else 13,
        outputs=2 if kind == "Split" else 1,
    )
    compare(save(model, tmp_path / "node.onnx"), IMAGE)


@pytest.mark.parametrize(
    ("kind", "more", "attributes"),
    [
        ("Split", [whole(1, 3)], {"axis": 1}),
        ("Split", [], {"axis": 1, "num_outputs": 2}),
        ("TopK", [whole(2)], {"axis": 1}),
    ],
)
def test_an_operator_with_two_outputs(kind, more, attributes, tmp_path):
    compare(save(written(kind, IMAGE, more, attributes, outputs=2), tmp_path / "node.onnx"), IMAGE)


@pytest.mark.parametrize(
    ("kind", "more", "attributes", "words"),
    [
        ("BatchNormalization", [floats(4)] * 4, {"training_mode": 1}, "training mode"),
        ("Dropout", [np.float32(0.5), np.bool_(True)], {}, "training mode"),
        ("Cast", [], {"to": 10}, "casts to FLOAT16"),
        ("ConvTranspose", [floats(4, 3, 3, 3)], {"auto_pad": "SAME_UPPER"}, "padding follows from the size"),
        ("AveragePool", [], {"kernel_shape": [2, 2], "dilations": [2, 2]}, "not neighbours"),
        ("Resize", [None, np.float32([1, 2, 1, 1])], {}, "resizes the batch or the channels"),
        ("Resize", [None, np.float32([1, 1, 2, 2])], {"antialias": 1, "mode": "linear"}, "with smoothing"),
        ("Resize", [None, np.float32([1, 1, 1.5, 2])], {}, "which torch has not"),
        ("Resize", [None, np.float32([1, 1, 2, 2])], {"nearest_mode": "floor"}, "which torch has not"),
        ("Resize", [None, np.float32([1, 1, 2, 2])], {"nearest_mode": "ceil"}, "which torch has not"),
        ("Resize", [None, np.float32([1, 1, 2, 2])], {"mode": "cubic", "cubic_coeff_a": -0.5}, "allowed is -0.75"),
        ("LRN", [], {"size": 4}, "allowed are odd ones"),
        ("CumSum", [np.int64(1)], {"reverse": 1}, "in reverse"),
        ("ArgMax", [], {"select_last_index": 1}, "last of equal values"),
    ],
)
def test_what_an_operator_does_not_do(kind, more, attributes, words, tmp_path):
    path = save(written(kind, IMAGE, more, attributes), tmp_path / "node.onnx")
    with pytest.raises(InputError, match=f"{kind} node: .*{words}"):
        read(path)(torch.from_numpy(IMAGE))


def test_numbers_that_depend_on_values(tmp_path):
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
        helper.make_node("Clip", ["x", "", "most"], ["y"], name="limited"),
    ]
    path = save(model_of(nodes, {"x": IMAGE}), tmp_path / "values.onnx")
    with pytest.raises(InputError, match="Clip limited: input 3 depends on the values of a tensor"):
        read(path)(torch.from_numpy(IMAGE))
