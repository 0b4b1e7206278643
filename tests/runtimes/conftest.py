"""A float network and a Q/DQ network as ONNX files, each with its mathematics written out in float64."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional as F

CLASSES = 10
CHANNELS = 16
SIZE = 8


@dataclass(frozen=True)
class OnnxModel:
    path: Path
    reference: Callable[[NDArray[np.float32]], NDArray[np.float64]]


def save(path: Path, nodes: list, constants: dict, batch: str | int = "batch") -> None:
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, CLASSES])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def tail(pooled_input: str, features: str) -> list:
    return [
        helper.make_node("GlobalAveragePool", [pooled_input], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], [features]),
    ]


@pytest.fixture(scope="session")
def float_model(tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    """Conv, ReLU, global average pooling, linear."""
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((CHANNELS, 3, 3, 3)).astype(np.float32) / 5
    bias = rng.standard_normal(CHANNELS).astype(np.float32)
    linear = rng.standard_normal((CLASSES, CHANNELS)).astype(np.float32)
    path = tmp_path_factory.mktemp("float") / "float.onnx"
    nodes = [
        helper.make_node("Conv", ["images", "kernel", "bias"], ["sum"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["sum"], ["activations"]),
        *tail("activations", "features"),
        helper.make_node("Gemm", ["features", "linear"], ["logits"], transB=1),
    ]
    save(path, nodes, {"kernel": kernel, "bias": bias, "linear": linear})

    def reference(images: NDArray[np.float32]) -> NDArray[np.float64]:
        x = torch.from_numpy(images).double()
        x = F.conv2d(x, torch.from_numpy(kernel).double(), torch.from_numpy(bias).double(), padding=1).relu()
        return F.linear(x.mean((2, 3)), torch.from_numpy(linear).double()).numpy()

    return OnnxModel(path, reference)


@pytest.fixture(scope="session")
def qdq_model(tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    """The same in INT8: int8 input, uint8 activations, int8 weights per channel, int32 bias, float logits.

    All scales are powers of two, so that float32 holds every intermediate value exactly: an engine that follows the
    integer semantics, round half to even included, gives exactly the reference. Weights have 7 bits: no CPU saturates.
    """
    rng = np.random.default_rng(1)
    scale_image, scale_activation, scale_feature = 2.0**-5, 2.0**-4, 2.0**-5
    scale_kernel = 2.0 ** rng.integers(-8, -5, CHANNELS)
    scale_linear = 2.0 ** rng.integers(-6, -4, CLASSES)
    kernel = rng.integers(-63, 64, (CHANNELS, 3, 3, 3)).astype(np.int8)
    bias = rng.integers(-2000, 2000, CHANNELS).astype(np.int32)
    linear = rng.integers(-63, 64, (CLASSES, CHANNELS)).astype(np.int8)
    constants = {
        "image_scale": np.float32(scale_image),
        "image_zero": np.int8(0),
        "activation_scale": np.float32(scale_activation),
        "activation_zero": np.uint8(0),
        "feature_scale": np.float32(scale_feature),
        "feature_zero": np.uint8(0),
        "kernel_q": kernel,
        "kernel_scale": scale_kernel.astype(np.float32),
        "bias_q": bias,
        "bias_scale": (scale_kernel * scale_image).astype(np.float32),
        "linear_q": linear,
        "linear_scale": scale_linear.astype(np.float32),
    }

    def quantize_dequantize(tensor: str, kind: str) -> list:
        grid = [f"{kind}_scale", f"{kind}_zero"]
        return [
            helper.make_node("QuantizeLinear", [tensor, *grid], [f"{tensor}_q"]),
            helper.make_node("DequantizeLinear", [f"{tensor}_q", *grid], [f"{tensor}_dq"]),
        ]

    nodes = [
        *quantize_dequantize("images", "image"),
        helper.make_node("DequantizeLinear", ["kernel_q", "kernel_scale"], ["kernel"], axis=0),
        helper.make_node("DequantizeLinear", ["bias_q", "bias_scale"], ["bias"], axis=0),
        helper.make_node("Conv", ["images_dq", "kernel", "bias"], ["sum"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["sum"], ["activations"]),
        *quantize_dequantize("activations", "activation"),
        *tail("activations_dq", "features"),
        *quantize_dequantize("features", "feature"),
        helper.make_node("DequantizeLinear", ["linear_q", "linear_scale"], ["linear"], axis=0),
        helper.make_node("Gemm", ["features_dq", "linear"], ["logits"], transB=1),
    ]
    path = tmp_path_factory.mktemp("qdq") / "qdq.onnx"
    save(path, nodes, constants)

    def quantized(x: torch.Tensor, scale: float, low: int, high: int) -> torch.Tensor:
        return torch.clamp(torch.round(x / scale), low, high) * scale

    def reference(images: NDArray[np.float32]) -> NDArray[np.float64]:
        per_channel = torch.from_numpy(scale_kernel)
        x = quantized(torch.from_numpy(images).double(), scale_image, -128, 127)
        weight = torch.from_numpy(kernel).double() * per_channel[:, None, None, None]
        x = F.conv2d(x, weight, torch.from_numpy(bias).double() * per_channel * scale_image, padding=1)
        x = quantized(x.relu(), scale_activation, 0, 255).mean((2, 3))
        x = quantized(x, scale_feature, 0, 255)
        return F.linear(x, torch.from_numpy(linear).double() * torch.from_numpy(scale_linear)[:, None]).numpy()

    return OnnxModel(path, reference)


@pytest.fixture(scope="session")
def images() -> NDArray[np.float32]:
    return np.random.default_rng(2).standard_normal((12, 3, SIZE, SIZE)).astype(np.float32)
