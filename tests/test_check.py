"""The library's verb, on our own files and on those of another tool."""

import subprocess
import sys

import numpy as np
import onnx
import onnxruntime.quantization as ort_quantization
import pytest
import torch
from onnx import TensorProto, numpy_helper

import repquant
from repquant.errors import InputError
from repquant.export.onnx import export_graph
from repquant.graph.capture import capture
from repquant.methods.ptq import PtqMethod
from repquant.models.network import build
from repquant.models.reparam import reparameterize
from repquant.targets.target import resolve_target


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = build("RepVGG-tiny", 7).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.bias.data.normal_(std=0.2)
    return reparameterize(model)


@pytest.fixture(scope="module")
def images():
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def export(network, images, tmp_path_factory):
    def run(name, kind="fused", **settings):
        target = resolve_target(name, fast_int8_dot=False, **settings)
        method = PtqMethod(equalization="none", identity=kind, rounding="nearest")
        quantized = repquant.quantize(network, [images], target=target, calibrator="max", method=method)
        return quantized.save(tmp_path_factory.mktemp("ours") / "model.onnx")

    return run


def severities(path, target):
    return {finding.rule.severity for finding in repquant.check(path, target)}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"stored_weights": "float"},
        {"scale_type": "float16"},
        {"per_tensor_weights": True},
        {"weight_bits": 4},
        {"kind": "residual"},
        {"kind": "depthwise"},
    ],
    ids=str,
)
def test_our_files_for_tensorrt_are_in_integers_throughout(export, settings):
    assert repquant.check(export("tensorrt", **settings), "tensorrt") == ()


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_our_files_for_the_cpu_run_their_layers_in_integers(export, target):
    found = repquant.check(export(target), target)
    assert {finding.node for finding in found} <= {"pool/ReduceMean"}


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_a_file_of_another_target_is_refused_by_tensorrt(export, target):
    rules = {finding.rule.name for finding in repquant.check(export(target), "tensorrt") if finding.is_refused}
    assert {"dequantized-type", "unsigned"} <= rules


def test_our_old_files_are_refused(export, tmp_path):
    """Until decision 7 the target tensorrt had int32 biases behind DequantizeLinear."""
    model = onnx.load(export("tensorrt"))
    graph, constants = model.graph, {tensor.name: tensor for tensor in model.graph.initializer}
    (conv, *_) = (node for node in graph.node if node.op_type == "Conv")
    bias = numpy_helper.to_array(constants[conv.input[2]])
    graph.initializer.extend(
        [numpy_helper.from_array(np.ones(len(bias), np.int32), "q"), numpy_helper.from_array(np.abs(bias) + 1, "s")]
    )
    graph.node.insert(0, onnx.helper.make_node("DequantizeLinear", ["q", "s"], ["b"], name="old bias", axis=0))
    conv.input[2] = "b"
    onnx.save(model, tmp_path / "old.onnx")
    (finding,) = repquant.check(tmp_path / "old.onnx", "tensorrt")
    assert (finding.rule.name, finding.node, finding.is_refused) == ("dequantized-type", "old bias", True)


class Reader(ort_quantization.CalibrationDataReader):
    def __init__(self, images):
        self._batches = iter([{"images": images.numpy()}])

    def get_next(self):
        return next(self._batches, None)


@pytest.mark.parametrize("quantize_bias", [True, False])
def test_files_of_onnxruntime(network, images, tmp_path, quantize_bias):
    export_graph(capture(network, images), tmp_path / "float.onnx", inputs=["images"])
    ort_quantization.quantize_static(
        tmp_path / "float.onnx",
        tmp_path / "theirs.onnx",
        Reader(images),
        per_channel=True,
        activation_type=ort_quantization.QuantType.QInt8,
        op_types_to_quantize=["Conv", "Gemm"],
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": quantize_bias},
    )
    found = repquant.check(tmp_path / "theirs.onnx", "tensorrt")
    refused = {finding.rule.name for finding in found if finding.is_refused}
    assert refused == ({"dequantized-type"} if quantize_bias else set())
    assert not severities(tmp_path / "theirs.onnx", "onnxruntime") & {"refused"}


def test_a_float_file_runs_in_float(network, images, tmp_path):
    export_graph(capture(network, images), tmp_path / "float.onnx", inputs=["images"])
    for target in ("tensorrt", "onnxruntime", "openvino"):
        assert "runs in float" in severities(tmp_path / "float.onnx", target)
        assert "refused" not in severities(tmp_path / "float.onnx", target)


def test_the_worst_comes_first(export, tmp_path):
    model = onnx.load(export("tensorrt"))
    zero = next(
        tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.INT8 and not tensor.dims
    )
    zero.CopyFrom(numpy_helper.from_array(np.int8(1), zero.name))
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    onnx.save(model, tmp_path / "wrong.onnx")
    found = repquant.check(tmp_path / "wrong.onnx", "tensorrt")
    assert [finding.rule.name for finding in found][-1] == "dynamic-size"
    assert {finding.rule.name for finding in found[:-1]} == {"zero-point"}
    assert str(found[0]).startswith("refused: stem.conv/QuantizeLinear: its zero point is not 0 [zero-point]; ")


def test_another_target(export):
    with pytest.raises(InputError, match="target 'coreml' was given; allowed are tensorrt, onnxruntime, openvino"):
        repquant.check(export("tensorrt"), "coreml")


@pytest.mark.parametrize("first", ["import repquant", "import repquant.check", "from repquant.check import check"])
def test_the_verb_is_callable_however_it_was_imported(first):
    code = f"{first}\nimport repquant\nassert callable(repquant.check)\nassert callable(repquant.check)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, repquant; print(sorted({'torch', 'onnx', 'numpy', 'onnxruntime', 'openvino'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="module 'repquant' has no attribute 'no_such_verb'"):
        repquant.no_such_verb  # noqa: B018
