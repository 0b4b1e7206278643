"""Blocks whose identity branch is set apart: what is exported, what runs, and that it is what was simulated."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from repquant.choices import SHORTCUT_KINDS
from repquant.export.onnx import export_graph
from repquant.methods.ptq import PtqMethod
from repquant.models.network import build
from repquant.models.reparam import reparameterize
from repquant.models.spec import ArchSpec
from repquant.quantize import quantize
from repquant.runtimes.available import open_runtime
from repquant.targets.target import resolve_target

SPEC = ArchSpec(name="few", blocks=(1, 3, 1, 1), widths=(0.25, 0.25, 0.125, 0.125))


@pytest.fixture(scope="module")
def images():
    return torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = build(SPEC, 4).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 2.0)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(std=0.2)
    return reparameterize(model)


@pytest.fixture(
    scope="module",
    params=[(kind, target) for kind in SHORTCUT_KINDS for target in ("tensorrt", "onnxruntime", "openvino")],
)
def exported(request, network, images, tmp_path_factory):
    kind, name = request.param
    target = resolve_target(name, weight_bits=7)  # no CPU saturates with these
    method = PtqMethod(equalization="none", identity=kind, rounding="nearest")
    quantized = quantize(network, [images], target=target, calibrator="max", method=method).module
    path = tmp_path_factory.mktemp("shortcut") / "model.onnx"
    export_graph(quantized, path, target)
    return kind, name, quantized, path


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_runtimes_compute_what_was_simulated(exported, images, engine):
    kind, target, quantized, path = exported
    if (target, engine) == ("onnxruntime", "openvino") and kind != "residual":
        pytest.skip("OpenVINO rounds the sum of two quantized summands otherwise; it has a target of its own")
    with torch.no_grad():
        expected = quantized(images).numpy()
    logits = open_runtime(engine, path)(images.numpy())
    # Activations on the border of two integers may fall on either side: one step of the last layer's input at most.
    step = quantized.head.input.scale * float(quantized.head.integers.float_weight().abs().max())
    assert np.abs(logits - expected).max() <= 1.01 * step


def test_the_input_of_a_block_is_quantized_once(exported):
    kind, name, _, path = exported
    graph = onnx.load(path).graph
    operators = Counter(node.op_type for node in graph.node)
    blocks = 2
    layers = 1 + sum(SPEC.blocks) + 1  # stem and head
    # The convolution of a block ends in its addition; TensorRT can fuse the two if the other summand is an integer.
    summands = {
        "onnxruntime": {"residual": 1, "depthwise": 2, "coarse-fine": 2},
        "tensorrt": {"residual": 0, "depthwise": 1, "coarse-fine": 1},
        "openvino": {"residual": 0, "depthwise": 1, "coarse-fine": 1},
    }
    assert operators["Add"] == blocks
    assert operators["QuantizeLinear"] == layers + 1 + blocks * summands[name][kind]  # and the pool
    quantized_tensors = [node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"]
    assert len(set(quantized_tensors)) == len(quantized_tensors)


def test_onnxruntime_adds_integers(exported, tmp_path):
    _, name, _, path = exported
    if name != "onnxruntime":
        pytest.skip("only this target quantizes both summands")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    operators = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert operators["QLinearAdd"] == 2
    assert operators["Conv"] == operators["FusedConv"] == operators["Add"] == 0
