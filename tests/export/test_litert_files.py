"""Files for LiteRT: the integers in them, how operators are put together, and what can't be written."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from repquant.check import check
from repquant.errors import InputError
from repquant.export.files import export_file
from repquant.export.litert.clips import Clip, fused
from repquant.export.litert.flat_file import Quantization
from repquant.export.litert.windows import is_same
from repquant.graph.capture import capture
from repquant.methods.ptq import PtqMethod
from repquant.numerics.affine import to_integers
from repquant.quantize import quantize
from repquant.simulation.network import quantized_layers
from repquant.targets.litert_file import load_schema, packed, read_litert, unpacked
from repquant.targets.target import resolve_target

pytest.importorskip("ai_edge_litert", reason="pip install 'repquant[litert]'")

from repquant.runtimes.litert import LitertRuntime

NEAREST = PtqMethod(equalization="none", rounding="nearest")


class Network(nn.Module):
    """What phones run: a stem that pads, depthwise and grouped convolutions, a shortcut, a gate, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False)
        self.gate = nn.Conv2d(16, 16, 1)
        self.grouped = nn.Conv2d(16, 8, 3, padding=1, groups=4)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = x + torch.relu(self.depthwise(x))
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        return self.head(nn.functional.relu6(self.grouped(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def images():
    return torch.randn(6, 3, 16, 24, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def int8(images):
    torch.manual_seed(0)
    return quantize(Network().eval(), [images], target="litert", calibrator="max", method=NEAREST)


@pytest.fixture(scope="module")
def expected(int8, images):
    with torch.inference_mode():
        return int8(images).numpy()


@pytest.fixture(scope="module")
def path(int8, tmp_path_factory):
    return int8.save(tmp_path_factory.mktemp("litert") / "network.tflite")


@pytest.fixture(scope="module")
def graph(path):
    return read_litert(path)


def test_the_runtime_gives_what_the_simulation_gives(path, images, expected):
    runtime = LitertRuntime(path, threads=1)
    assert (runtime.inputs, runtime.outputs) == ({"x": (None, 3, 16, 24)}, ("output",))
    for part in (slice(0, 1), slice(0, 6), slice(3, 5)):  # any batch, one after the other
        np.testing.assert_allclose(runtime(images[part].numpy()), expected[part], rtol=0, atol=1e-5)


def test_weights_and_biases_in_the_file_are_the_integers_of_the_simulation(int8, graph):
    layers = {name: layer.integers for name, layer in quantized_layers(int8.module).items()}
    tensors = {tensor.name: tensor for tensor in graph.tensors if tensor.constant is not None}
    for name, integers in layers.items():
        weight = tensors[f"{name}.weight"]
        values = integers.weight.numpy()
        if name != "head":
            values = values.transpose(1, 2, 3, 0) if name == "depthwise" else values.transpose(0, 2, 3, 1)
        np.testing.assert_array_equal(weight.constant, values)
        np.testing.assert_array_equal(weight.scale, integers.weight_grid.scale.numpy())
        assert not weight.zero_point.any()
        if name in ("stem", "gate", "grouped"):
            np.testing.assert_array_equal(tensors[f"{name}.bias"].constant, integers.bias.numpy())
            np.testing.assert_array_equal(tensors[f"{name}.bias"].scale, integers.bias_scale.numpy())
    np.testing.assert_allclose(tensors["head.bias"].constant, layers["head"].float_bias().numpy(), rtol=0)


def test_a_layer_and_its_activation_are_one_operator(graph):
    kinds = [operator.kind for operator in graph.operators]
    gate = ["MEAN", "CONV_2D", "DEQUANTIZE", "LOGISTIC", "QUANTIZE", "MUL"]
    head = ["CONV_2D", "MEAN", "DEQUANTIZE", "DEQUANTIZE", "FULLY_CONNECTED"]
    assert kinds == ["QUANTIZE", "PAD", "CONV_2D", "DEPTHWISE_CONV_2D", "ADD", *gate, *head]
    activations = load_schema().ActivationFunctionType
    assert [graph.operators[place].options.fusedActivationFunction for place in (2, 3, 4)] == [
        activations.RELU,
        activations.RELU,
        activations.NONE,
    ]
    in_float = {operator.kind for operator in graph.operators if graph.reads(operator)[0].dtype == "float32"}
    assert in_float == {"QUANTIZE", "LOGISTIC", "FULLY_CONNECTED"}


def test_tensors_have_names_of_their_own(graph):
    names = [tensor.name for tensor in graph.tensors]
    assert len(set(names)) == len(names)


def test_what_a_runtime_reads_lies_aligned(path, graph):
    content = path.read_bytes()
    for tensor in graph.tensors:
        if tensor.constant is not None and tensor.constant.nbytes > 16 and tensor.constant.any():
            assert content.find(tensor.constant.tobytes()) % 16 == 0, tensor.name


def test_a_fixed_batch(int8, images, expected, tmp_path):
    runtime = LitertRuntime(int8.save(tmp_path / "two.tflite", batch=2), threads=1)
    assert runtime.inputs == {"x": (2, 3, 16, 24)}
    np.testing.assert_allclose(runtime(images[:2].numpy()), expected[:2], rtol=0, atol=1e-5)
    with pytest.raises(InputError, match=r"takes batches of exactly 2 images, and one has 3"):
        runtime(images[:3].numpy())
    with pytest.raises(InputError, match="batch 0 was given; allowed are 1 or more, and None"):
        int8.save(tmp_path / "none.tflite", batch=0)


@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_integers_come_in_on_the_grid_of_the_file(int8, images, expected, tmp_path, kind):
    runtime = LitertRuntime(int8.save(tmp_path / f"{kind}.tflite", input_type=kind), threads=1)
    np.testing.assert_allclose(runtime(images.numpy()), expected, rtol=0, atol=1e-5)
    grid, shift = int8.plan.input_grid("stem"), 128 if kind == "uint8" else 0
    assert runtime._inputs[0]["quantization"] == (pytest.approx(float(grid.scale)), int(grid.zero_point) + shift)
    given = (to_integers(images, grid).numpy() + shift).astype(kind)
    np.testing.assert_allclose(runtime.run({"x": given})["output"], expected, rtol=0, atol=1e-5)


def test_ends_that_are_not_on_a_grid_stay_float(int8, tmp_path):
    with pytest.raises(InputError, match="output output is computed in float, so that the file can't give int8"):
        int8.save(tmp_path / "x.tflite", output_type="int8")
    with pytest.raises(InputError, match="input type 'int16' was given; allowed are float32, int8, uint8"):
        int8.save(tmp_path / "x.tflite", input_type="int16")
    assert not list(tmp_path.iterdir())


def test_names_may_have_any_letters(int8, images, expected, tmp_path):
    saved = int8.save(tmp_path / "größe.tflite", inputs=["bilder_é"], outputs=["классы"])
    runtime = LitertRuntime(saved, threads=1)
    assert (tuple(runtime.inputs), runtime.outputs) == (("bilder_é",), ("классы",))
    np.testing.assert_allclose(runtime(images.numpy()), expected, rtol=0, atol=1e-5)


def test_settings_of_tflite_files_and_files_of_other_targets(int8, tmp_path):
    with pytest.raises(InputError, match=r"takes any batch; a fixed one is for \.tflite and \.pte files"):
        int8.save(tmp_path / "x.onnx", batch=1)
    with pytest.raises(InputError, match=r"\.pt was given; files for target litert end in \.tflite or \.onnx"):
        int8.save(tmp_path / "x.pt")


class Sort(nn.Module):
    def forward(self, x):
        return torch.sort(x, dim=1).values


def test_an_operator_that_the_file_can_not_hold_is_named(tmp_path):
    graph = capture(nn.Sequential(nn.Conv2d(3, 4, 1), Sort()), torch.zeros(2, 3, 8, 8))
    with pytest.raises(InputError, match=r"sort.* \(aten\.sort\.default\): .*; write it with other operators, or"):
        export_file(graph, tmp_path / "x.tflite")
    assert not list(tmp_path.iterdir())


def test_ends_that_hold_no_floats_are_named(tmp_path):
    class Classes(nn.Module):
        def forward(self, x):
            return x.argmax(1)

    with pytest.raises(InputError, match=r"argmax.*it gives no floats; write it with other operators, or leave"):
        export_file(capture(Classes(), torch.zeros(2, 3)), tmp_path / "x.tflite")
    with pytest.raises(InputError, match=r"holds torch\.int64; a \.tflite file is written for inputs of floats"):
        export_file(capture(nn.Embedding(4, 3), torch.zeros(2, 3, dtype=torch.int64)), tmp_path / "x.tflite")


def test_a_float_network(images, tmp_path):
    torch.manual_seed(0)
    model = Network().eval()
    export_file(capture(model, images), tmp_path / "float.tflite")
    with torch.inference_mode():
        reference = model(images).numpy()
    given = LitertRuntime(tmp_path / "float.tflite", threads=1)(images.numpy())
    np.testing.assert_allclose(given, reference, rtol=0, atol=1e-4 * float(np.abs(reference).max()))


@pytest.mark.parametrize(
    ("size", "extent", "stride", "pad", "same"),
    [
        (8, 3, 1, 1, True),
        (8, 3, 2, 1, False),  # SAME needs one place, and puts it at the end
        (9, 3, 2, 1, True),  # two places, one on each side
        (8, 1, 2, 0, True),
        (8, 5, 1, 1, False),  # fewer windows than places
    ],
)
def test_where_windows_start(size, extent, stride, pad, same):
    assert is_same([size], [extent], [stride], [pad]) is same


def test_a_clip_that_the_grid_does_is_left_to_it():
    activations = load_schema().ActivationFunctionType
    grid = Quantization(1 / 128, 0)  # -1 to 127/128
    assert fused(Clip(low=0), grid) == (activations.RELU, Clip())
    assert fused(Clip(0, 6), None) == (activations.RELU6, Clip())
    assert fused(Clip(-2, 3), grid) == (activations.NONE, Clip())
    assert fused(Clip(-2, 0.5), grid) == (activations.NONE, Clip(-2, 0.5))
    assert fused(Clip(-2, math.inf), None) == (activations.NONE, Clip(-2, math.inf))


def test_linear_weights_of_4_bits_are_stored_as_int4_where_xnnpack_multiplies_them(tmp_path):
    torch.manual_seed(0)
    tokens = torch.randn(4, 5, 64)
    network = nn.Sequential(nn.Linear(64, 33), nn.ReLU(), nn.Linear(33, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU())
    network.append(nn.Linear(48, 8))
    written = {}
    for bits in (4, 8):
        target = resolve_target("litert", weight_bits=bits)
        int8 = quantize(network.eval(), [tokens], target=target, calibrator="max", method=NEAREST)
        path = int8.save(tmp_path / f"w{bits}.tflite")
        with torch.inference_mode():
            expected = int8(tokens).numpy()
        np.testing.assert_allclose(LitertRuntime(path, threads=1)(tokens.numpy()), expected, rtol=0, atol=1e-5)
        weights = {tensor.name: tensor for tensor in read_litert(path).tensors if tensor.name.endswith(".weight")}
        for name, layer in quantized_layers(int8.module).items():
            np.testing.assert_array_equal(weights[f"{name}.weight"].constant, layer.integers.weight.numpy())
        written[bits] = path.stat().st_size, [weight.dtype for weight in weights.values()]
    assert written[8][1] == ["int8"] * 4
    assert written[4][1] == ["int4", "int8", "int4", "int8"]  # a row of 33, and the last layer, which computes in float
    assert written[8][0] - written[4][0] == pytest.approx((64 * 33 + 48 * 48) // 2, abs=64)  # but for alignment
    assert not [finding for finding in check(tmp_path / "w4.tflite", "litert") if finding.rule.name == "not-delegated"]


def test_int4_is_read_as_it_was_written():
    integers = np.asarray([[-8, 7, 0], [-1, 3, -7]], np.int8)
    for values in (integers, integers[:, :1], integers[:1]):  # an odd number of them too
        stored = np.frombuffer(packed(values), np.uint8)
        assert len(stored) == (values.size + 1) // 2
        np.testing.assert_array_equal(unpacked(stored, values.size), values.reshape(-1))


class Constant(nn.Module):
    """A value and a constant, in a function."""

    def __init__(self, function):
        super().__init__()
        self.conv, self.function = nn.Conv2d(3, 4, 1), function
        self.few, self.many = nn.Buffer(torch.randn(1, 2, 8, 8)), nn.Buffer(torch.randn(1, 4, 8, 8))

    def forward(self, x):
        return self.function(self, self.conv(x))


@pytest.mark.parametrize(
    "function",
    [
        lambda self, y: torch.cat([y, self.few], 1),
        lambda self, y: torch.cat([self.few, y, (self.few > 0).int()], 1),
        lambda self, y: torch.stack([y, self.many], 1),
        lambda self, y: y @ self.many,
    ],
)
def test_a_constant_beside_values(function, tmp_path):
    network, image = Constant(function).eval(), torch.randn(1, 3, 8, 8)
    export_file(capture(network, image), tmp_path / "x.tflite")
    with torch.inference_mode():
        wanted = network(image).numpy()
    np.testing.assert_allclose(LitertRuntime(tmp_path / "x.tflite")(image.numpy()), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda _, y: torch.cat([y, y[:, :0]], 1), "an empty value is not written"),
        (lambda _, y: torch.cat([y, y.new_zeros(0)], 1), "empty"),
        (lambda self, y: y + self.many.expand(y.shape[0], -1, -1, -1), "what is computed of constants alone"),
    ],
)
def test_empty_values_and_constants_alone(function, words, tmp_path):
    with pytest.raises(InputError, match=words):
        export_file(capture(Constant(function).eval(), torch.randn(2, 3, 8, 8)), tmp_path / "x.tflite")
