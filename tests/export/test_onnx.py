import numpy as np
import onnx
import pytest
import torch
from torch import nn

from repquant.errors import InputError
from repquant.export.litert.network import export_litert
from repquant.export.onnx import export_graph
from repquant.graph.capture import capture
from repquant.methods.ptq import PtqMethod
from repquant.models.blocks import SqueezeExcite
from repquant.models.network import build
from repquant.models.reparam import reparameterize
from repquant.quantize import quantize
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


NEAREST = PtqMethod(equalization="none", rounding="nearest")
STORAGES = {
    "onnxruntime": ("onnxruntime", {}),
    "tensorrt": ("tensorrt", {}),
    "tensorrt-float": ("tensorrt", {"stored_weights": "float"}),
    "tensorrt-half": ("tensorrt", {"scale_type": "float16"}),
    "tensorrt-float-half": ("tensorrt", {"stored_weights": "float", "scale_type": "float16"}),
}


@pytest.fixture(scope="module", params=STORAGES)
def exported(request, images, tmp_path_factory):
    torch.manual_seed(0)
    name, storage = STORAGES[request.param]
    target = resolve_target(name, weight_bits=8 if int8_support().safe else 7, **storage)
    quantized = quantize(Block().eval(), [images], target=target, calibrator="max", method=NEAREST).module
    path = tmp_path_factory.mktemp("export") / "block.onnx"
    size = export_graph(quantized, path, target)
    return target, quantized, path, size


def initializers(path):
    return {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def nodes(path, kind):
    return [node for node in onnx.load(path).graph.node if node.op_type == kind]


def stored(path, kind):
    """The constants that each node of a kind reads, where its data is one: (data, scale, zero point)."""
    arrays = initializers(path)
    return [tuple(arrays[name] for name in node.input) for node in nodes(path, kind) if node.input[0] in arrays]


def layers_of(quantized):
    layers = [m for m in quantized.modules() if isinstance(m, QuantizedConv2d | QuantizedLinear)]
    assert len(layers) == 5
    return layers


def test_stored_weights_are_those_of_the_simulation(exported):
    target, quantized, path, _ = exported
    kind = "DequantizeLinear" if target.weights == "int8" else "QuantizeLinear"
    weights = [data for data in stored(path, kind) if data[0].dtype != np.int32]
    assert len(weights) == 5
    for layer in layers_of(quantized):
        expected, scale = layer.integers.weight.numpy(), layer.integers.weight_grid.scale.numpy()
        (match,) = (w for w in weights if w[0].shape == expected.shape and np.array_equal(w[1], scale))
        assert not match[2].any()
        assert match[2].dtype == np.int8
        integers, step = match[0], match[1].reshape(-1, *[1] * (expected.ndim - 1))
        if target.weights == "float":
            assert integers.dtype == match[1].dtype
            integers = np.round(integers / step)
        assert np.array_equal(integers, expected)


def test_stored_biases_are_those_of_the_simulation(exported):
    target, quantized, path, _ = exported
    arrays = initializers(path)
    behind = {node.output[0]: node for node in nodes(path, "DequantizeLinear")}
    found = {}
    for node in onnx.load(path).graph.node:
        if node.op_type in ("Conv", "Gemm") and len(node.input) == 3:
            found[node.name.rpartition("/")[0]] = node.input[2]
    for name, layer in quantized.named_modules():
        if not isinstance(layer, QuantizedConv2d | QuantizedLinear) or layer.bias is None:
            continue
        bias, scale = layer.integers.bias.numpy(), layer.integers.bias_scale.numpy()
        if target.float_biases:
            value = arrays[found[name]]
            assert value.dtype == np.dtype(target.weight.scale_type)
            assert np.array_equal(value, (bias.astype(np.float32) * scale).astype(value.dtype))
            assert np.abs(value / scale.astype(np.float64) - bias).max() <= 0.5
        else:
            integers, step, _ = (arrays[name] for name in behind[found[name]].input)
            assert np.array_equal(integers, bias)
            assert np.allclose(step, scale, rtol=1e-6)


def test_tensorrt_meets_no_int32_and_no_uint8(exported):
    target, _, path, _ = exported
    kinds = {array.dtype for kind in ("QuantizeLinear", "DequantizeLinear") for w in stored(path, kind) for array in w}
    assert (np.dtype(np.int32) in kinds) == (target.name != "tensorrt")
    zero_points = [initializers(path)[node.input[2]] for node in nodes(path, "QuantizeLinear")]
    assert {point.dtype for point in zero_points} == {np.dtype(np.int8 if target.name == "tensorrt" else np.uint8)}
    assert any(point.any() for point in zero_points) == (target.name != "tensorrt")


def test_no_float_weight_is_stored_unless_asked_for(exported):
    target, _, path, size = exported
    large = [name for name, array in initializers(path).items() if array.dtype.kind == "f" and array.ndim > 1]
    assert len(large) == (5 if target.weights == "float" else 0)
    assert size == path.stat().st_size


def test_all_scales_have_the_type_that_was_asked_for(exported):
    target, quantized, path, _ = exported
    arrays = initializers(path)
    scales = [arrays[n.input[1]] for kind in ("QuantizeLinear", "DequantizeLinear") for n in nodes(path, kind)]
    assert {scale.dtype for scale in scales} == {np.dtype(target.weight.scale_type)}
    for layer in layers_of(quantized):  # the simulation has the same scales
        assert any(np.array_equal(scale, layer.integers.weight_grid.scale.numpy()) for scale in scales)
        assert any(scale.ndim == 0 and float(scale) == layer.input.scale for scale in scales)


def test_opset_is_one_that_the_parser_knows(exported):
    target, _, path, _ = exported
    is_for_8 = target.weights == "float" and target.weight.scale_type == "float32"
    assert onnx.load(path).opset_import[0].version == (17 if is_for_8 else 21)


def test_nodes_have_the_names_of_their_modules(exported):
    _, _, path, _ = exported
    names = [node.name for node in onnx.load(path).graph.node]
    assert len(set(names)) == len(names)
    assert {"conv/Conv", "se.down/Conv", "grouped/Conv", "head/Gemm"} <= {*names}


def test_tensorrt_pools_instead_of_reducing(exported):
    target, _, path, _ = exported
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    counts = (kinds.count("GlobalAveragePool"), kinds.count("ReduceMean"))
    assert counts == ((2, 0) if target.name == "tensorrt" else (0, 2))


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
    export_graph(capture(model, images), tmp_path / "float.onnx")
    with torch.inference_mode():
        expected = model(images).numpy()
    logits = open_runtime(engine, tmp_path / "float.onnx")(images.numpy())
    assert logits == pytest.approx(expected, abs=1e-4 * float(np.abs(expected).max()))


def test_folder_that_can_not_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="can't write"):
        export_graph(capture(nn.Conv2d(3, 2, 1), torch.zeros(2, 3, 8, 8)), tmp_path / "file" / "m.onnx")


def test_a0_with_1000_classes_is_at_most_8_7_megabytes(tmp_path):
    model = reparameterize(build("RepVGG-A0", 1000).eval())
    target = resolve_target("tensorrt")
    quantized = quantize(model, [torch.randn(2, 3, 64, 64)], target=target, calibrator="max", method=NEAREST)
    assert export_graph(quantized.module, tmp_path / "a0.onnx", target) <= 8_700_000
    assert export_litert(quantized.module, tmp_path / "a0.tflite") <= 8_700_000


@pytest.mark.slow
def test_a0_with_1000_classes_for_executorch_is_at_most_8_7_megabytes(tmp_path):
    pytest.importorskip("executorch.runtime", reason="pip install 'repquant[executorch]'")
    model = reparameterize(build("RepVGG-A0", 1000).eval())
    int8 = quantize(model, [torch.randn(2, 3, 64, 64)], target="executorch", calibrator="max", method=NEAREST)
    assert int8.save(tmp_path / "a0.pte").stat().st_size <= 8_700_000


class Replaced(nn.Module):
    """Operators that the exporter knows only in other words: two that are replaced before, and one that is not."""

    def __init__(self, is_known):
        super().__init__()
        self.up, self.is_known = nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1, groups=1), is_known

    def forward(self, x):
        x = self.up(x)
        return nn.functional.adaptive_avg_pool2d(x if self.is_known else 1 - x, 1)


@pytest.mark.parametrize("is_known", [True, False])
def test_the_exporter_traces_a_network_once_where_it_knows_the_operators(is_known, images, tmp_path, monkeypatch):
    traces = []
    decompose = torch.export.ExportedProgram.run_decompositions
    graph = capture(Replaced(is_known).eval(), images)
    monkeypatch.setattr(
        torch.export.ExportedProgram,
        "run_decompositions",
        lambda *arguments: traces.append(1) or decompose(*arguments),
    )
    export_graph(graph, tmp_path / "network.onnx")
    assert len(traces) == (0 if is_known else 1)
    given = open_runtime("onnxruntime", tmp_path / "network.onnx")(images.numpy())
    np.testing.assert_allclose(given, graph(images).detach().numpy(), atol=1e-5)
    assert onnx.load(tmp_path / "network.onnx").graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
