import onnx
import pytest
from onnx import TensorProto, helper

from repquant.bench.macs import multiply_accumulates

FLOAT, INT8, UINT8 = TensorProto.FLOAT, TensorProto.INT8, TensorProto.UINT8


def model(nodes, x_shape, constants=(), kind=FLOAT):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, x_shape)],
        [helper.make_tensor_value_info("y", kind, None)],
        [helper.make_tensor(name, of, shape, [0] * _size(shape)) for name, of, shape in constants],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def _size(shape):
    size = 1
    for side in shape:
        size *= side
    return size


@pytest.mark.parametrize(
    ("node", "x", "weight", "expected"),
    [
        # 2 images, 8 channels out, 4 x 4 positions, 3 channels x 3 x 3
        (helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4), (2, 3, 4, 4), (8, 3, 3, 3), 2 * 8 * 16 * 27),
        # stride 2 without padding: 2 x 2 positions; 2 groups: each filter reads 2 channels
        (helper.make_node("Conv", ["x", "w"], ["y"], strides=[2, 2], group=2), (1, 4, 5, 5), (6, 2, 3, 3), 6 * 4 * 18),
        # every one of 3 x 4 x 4 values meets 5 filters of 2 x 2
        (helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2]), (1, 3, 4, 4), (3, 5, 2, 2), 48 * 20),
        (helper.make_node("Gemm", ["x", "w"], ["y"], transB=1), (2, 7), (5, 7), 2 * 5 * 7),
        (helper.make_node("Gemm", ["x", "w"], ["y"], transA=1), (7, 2), (7, 5), 2 * 5 * 7),
        (helper.make_node("MatMul", ["x", "w"], ["y"]), (2, 3, 4, 6), (6, 5), 2 * 3 * 4 * 5 * 6),
    ],
)
def test_one_layer(node, x, weight, expected):
    assert multiply_accumulates(model([node], x, [("w", FLOAT, weight)]), {"x": x}) == expected


def test_quantized_files_of_all_kinds_count_as_float_ones():
    conv = {"pads": [1] * 4}
    grid, weight_grid = [("s", FLOAT, ()), ("z", UINT8, ())], [("ws", FLOAT, ()), ("wz", INT8, ())]
    weight = [("w", INT8, (8, 3, 3, 3))]
    qdq = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["dw"]),
        helper.make_node("Conv", ["d", "dw"], ["y"], **conv),
    ]
    names = ["x", "s", "z", "w", "ws", "wz", "s", "z"]
    operator = [helper.make_node("QLinearConv", names, ["y"], **conv)]
    constants = [*grid, *weight_grid, *weight]
    for nodes, kind in ((qdq, FLOAT), (operator, UINT8)):
        assert multiply_accumulates(model(nodes, ("n", 3, 4, 4), constants, kind), {"x": (1, 3, 4, 4)}) == 8 * 16 * 27


def test_the_batch_that_is_asked_for_counts_and_names_of_sizes_in_the_file_do_not():
    flat = model(
        [
            helper.make_node("Conv", ["x", "w"], ["c"]),
            helper.make_node("Flatten", ["c"], ["f"]),
            helper.make_node("MatMul", ["f", "m"], ["y"]),
        ],
        ("n", 3, 4, 4),
        [("w", FLOAT, (2, 3, 3, 3)), ("m", FLOAT, (8, 10))],
    )
    flat.graph.value_info.append(helper.make_tensor_value_info("c", FLOAT, ["n", 2, 2, 2]))
    for batch in (1, 5):
        assert multiply_accumulates(flat, {"x": (batch, 3, 4, 4)}) == batch * (8 * 27 + 8 * 10)


def test_what_can_not_be_inferred_is_not_guessed():
    custom = helper.make_node("Strange", ["x"], ["s"], domain="nobody")
    found = model([custom, helper.make_node("Conv", ["s", "w"], ["y"])], (1, 3, 4, 4), [("w", FLOAT, (8, 3, 3, 3))])
    found.opset_import.append(onnx.helper.make_opsetid("nobody", 1))
    assert multiply_accumulates(found, {"x": (1, 3, 4, 4)}) is None
