import numpy as np
import onnx
import pytest
import torch
from torch import nn

from repquant.errors import InputError
from repquant.export.onnx import export_onnx
from repquant.models.blocks import SqueezeExcite
from repquant.models.network import build
from repquant.models.reparam import reparameterize
from repquant.quant.calibrate import activation_ranges, collect_histograms
from repquant.quant.convert import quantize_model
from repquant.runtimes.available import open_runtime
from repquant.runtimes.cpu import int8_support
from repquant.simulation.layers import QuantizedConv2d, QuantizedLinear
from repquant.targets.target import resolve_target

ENGINES = ("onnxruntime", "openvino")


class Block(nn.Module):
    """A convolution, squeeze-and-excite, a grouped convolution and a classifier: every kind of quantized module."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.se = SqueezeExcite(16)
        self.relu = nn.ReLU()
        self.grouped = nn.Conv2d(16, 8, 3, padding=1, groups=4, bias=False)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.relu(self.se(self.conv(x)))
        return self.head(self.pool(self.grouped(x)).flatten(1))


@pytest.fixture(scope="module")
def images():
    return torch.randn(6, 3, 16, 24, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=["tensorrt", "onnxruntime"])
def exported(request, images, tmp_path_factory):
    torch.manual_seed(0)
    model = Block().eval()
    target = resolve_target(request.param, weight_bits=8 if int8_support().safe else 7)
    ranges = activation_ranges("max", collect_histograms(model, [images]), target)
    quantized = quantize_model(model, ranges, target)
    path = tmp_path_factory.mktemp("export") / "block.onnx"
    size = export_onnx(quantized, path, (16, 24))
    return request.param, quantized, path, size


def initializers(path):
    return {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def dequantize_inputs(path):
    """The arrays behind each DequantizeLinear whose data is constant: (integers, scale, zero point)."""
    arrays = initializers(path)
    nodes = [node for node in onnx.load(path).graph.node if node.op_type == "DequantizeLinear"]
    return [tuple(arrays[name] for name in node.input) for node in nodes if node.input[0] in arrays]


def test_stored_integers_are_those_of_the_simulation(exported):
    _, quantized, path, _ = exported
    stored = dequantize_inputs(path)
    layers = [m for m in quantized.modules() if isinstance(m, QuantizedConv2d | QuantizedLinear)]
    assert len(layers) == 5
    for layer in layers:
        expected = layer.integers.weight.numpy()
        (match,) = (s for s in stored if s[0].dtype == np.int8 and np.array_equal(s[0], expected))
        assert np.array_equal(match[1], layer.integers.weight_grid.scale.numpy())
        assert not match[2].any()
        if layer.bias is not None:
            bias = layer.integers.bias.numpy()
            (match,) = (s for s in stored if s[0].dtype == np.int32 and np.array_equal(s[0], bias))
            assert np.allclose(match[1], layer.input.scale * layer.integers.weight_grid.scale.numpy(), rtol=1e-6)


def test_no_float_weight_is_stored(exported):
    _, _, path, size = exported
    large = [name for name, array in initializers(path).items() if array.dtype == np.float32 and array.ndim > 1]
    assert large == []
    assert size == path.stat().st_size


def test_zero_points(exported):
    target, _, path, _ = exported
    arrays = initializers(path)
    nodes = [node for node in onnx.load(path).graph.node if node.op_type == "QuantizeLinear"]
    points = [arrays[node.input[2]] for node in nodes]
    assert {point.dtype for point in points} == {np.dtype(np.int8 if target == "tensorrt" else np.uint8)}
    assert any(points) == (target != "tensorrt")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("batch", [1, 5])
def test_runtimes_agree_with_the_simulation_at_any_batch(exported, images, engine, batch):
    _, quantized, path, _ = exported
    with torch.inference_mode():
        expected = quantized(images[:batch]).numpy()
    logits = open_runtime(engine, path)(images[:batch].numpy())
    # An activation on the border of two integers may fall on either side: one step of the last input at most.
    step = quantized.head.input.scale * float(quantized.head.integers.float_weight().abs().max())
    assert np.abs(logits - expected).max() <= 1.01 * step


def test_nothing_of_this_machine_is_in_the_file(exported):
    _, _, path, _ = exported
    content = path.read_bytes()
    assert b".py" not in content
    assert b"stack_trace" not in content


@pytest.mark.parametrize("engine", ENGINES)
def test_float_export_equals_torch(images, tmp_path, engine):
    torch.manual_seed(1)
    model = reparameterize(build("RepVGG-tiny", 7).eval())
    export_onnx(model, tmp_path / "float.onnx", (16, 24))
    with torch.inference_mode():
        expected = model(images).numpy()
    logits = open_runtime(engine, tmp_path / "float.onnx")(images.numpy())
    assert logits == pytest.approx(expected, abs=1e-4 * float(np.abs(expected).max()))


def test_folder_that_does_not_exist(tmp_path):
    with pytest.raises(InputError, match="can't write"):
        export_onnx(nn.Sequential(nn.Conv2d(3, 2, 1)).eval(), tmp_path / "missing" / "m.onnx", 8)


def test_a0_with_1000_classes_is_at_most_8_7_megabytes(tmp_path):
    model = reparameterize(build("RepVGG-A0", 1000).eval())
    target = resolve_target("tensorrt")
    histograms = collect_histograms(model, [torch.randn(1, 3, 64, 64)])
    quantized = quantize_model(model, activation_ranges("max", histograms, target), target)
    assert export_onnx(quantized, tmp_path / "a0.onnx", 224) <= 8_700_000
