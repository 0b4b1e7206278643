"""How many int8 multiply-accumulates a second an engine reaches on this machine: what networks are compared with."""

import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from repquant.bench.latency import measure_latency
from repquant.runtimes.available import open_runtime

SIDE, PRODUCTS = 1024, 4
"""Square matrices, and how many products follow one another: quantizing the first and the last result weighs little."""

_ROUNDS, _WARM_UP = 7, 2
_PER_GIGA = 1e9


def int8_peak(runtime: str, threads: int | None = None) -> float:
    """Return the GMAC/s of products of int8 matrices in an engine, as it runs the files that are measured beside it.

    The fastest round counts: whatever else the machine does only takes from its peak.

    Args:
        runtime: name of the engine.
        threads: of the CPU; None leaves them to the engine.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "products.onnx"
        onnx.save(products(SIDE, PRODUCTS, signed=runtime == "tensorrt"), path)
        engine = open_runtime(runtime, path, threads)
        matrix = np.random.default_rng(0).standard_normal((SIDE, SIDE), np.float32)
        samples = measure_latency({runtime: lambda: engine(matrix)}, rounds=_ROUNDS, warm_up=_WARM_UP)[runtime]
    return PRODUCTS * SIDE**3 / _PER_GIGA / (min(samples) / 1000)


def products(side: int, count: int, *, signed: bool = False) -> onnx.ModelProto:
    """Return a file that multiplies a matrix (side, side) by one after the other, with Q/DQ nodes between.

    Weights have 7 bits: there is no CPU on which they saturate or need a slower kernel.

    Args:
        side: of all matrices.
        count: of products.
        signed: quantize what is multiplied to int8 (TensorRT), and not to uint8 (CPUs).
    """
    weights = np.random.default_rng(1).integers(-63, 64, (side, side)).astype(np.int8)
    constants = {
        "scale": np.float32(2.0**-5),
        "zero": np.int8(0) if signed else np.uint8(0),
        "weight_scale": np.float32(2.0**-11),  # which keeps the values where they are
        "weight_zero": np.int8(0),
        **{f"weight_{index}": weights for index in range(count)},
    }
    nodes = []
    for index in range(count):
        grid, x = ["scale", "zero"], f"x_{index}"
        nodes += [
            helper.make_node("QuantizeLinear", [x, *grid], [f"{x}_q"]),
            helper.make_node("DequantizeLinear", [f"{x}_q", *grid], [f"{x}_dq"]),
            helper.make_node("DequantizeLinear", [f"weight_{index}", "weight_scale", "weight_zero"], [f"w_{index}"]),
            helper.make_node("MatMul", [f"{x}_dq", f"w_{index}"], [f"x_{index + 1}"]),
        ]
    graph = helper.make_graph(
        nodes,
        "products",
        [helper.make_tensor_value_info("x_0", TensorProto.FLOAT, [side, side])],
        [helper.make_tensor_value_info(f"x_{count}", TensorProto.FLOAT, [side, side])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
