"""A network with weights of 4 and of 8 bits: files hold the simulation's integers, and runtimes compute the same."""

import numpy as np
import pytest
import torch
from onnx import load, numpy_helper
from torch import nn

import repquant as rq
from repquant.errors import InputError
from repquant.runtimes.cpu import int8_support
from repquant.simulation.network import quantized_layers

WIDE = 8 if int8_support().safe else 7  # OpenVINO saturates with 8 bits on CPUs without VNNI


class Network(nn.Module):
    """A shortcut, a depthwise convolution, and a head of linear layers."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.block, self.depthwise = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.hidden, self.wide, self.head = nn.Linear(16, 32), nn.Linear(32, 32), nn.Linear(32, 5)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(self.depthwise(torch.relu(self.block(x) + x)))
        x = torch.relu(self.hidden(x.mean((2, 3))))
        return self.head(torch.relu(self.wide(x)))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Network().eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def quantized(model, images, target, average_bits=5.5, wide=WIDE):
    schemes = rq.resolve_target(target, weight_bits=wide)
    return rq.quantize(model, [images], target=schemes, average_bits=average_bits)


def integers_of(int8):
    return {name: layer.integers.weight.numpy() for name, layer in quantized_layers(int8.module).items()}


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_onnx(model, images, target, tmp_path):
    int8 = quantized(model, images, target)
    bits = int8.plan.weight_bits
    assert set(bits.values()) == {4, WIDE}
    assert {layer.name: layer.precision for layer in int8.layers} == {name: f"int{own}" for name, own in bits.items()}
    integers = integers_of(int8)
    for name, own in integers.items():
        most = np.abs(own).max()
        assert most <= 7 if bits[name] == 4 else most > 7, name
    path = int8.save(tmp_path / "mixed.onnx")
    stored = [numpy_helper.to_array(each) for each in load(path).graph.initializer]
    stored = [each for each in stored if each.dtype == np.int8 and each.ndim > 1]
    assert sorted(map(np.ndarray.tobytes, stored)) == sorted(each.tobytes() for each in integers.values())
    with torch.inference_mode():
        expected = int8(images).numpy()
    for runtime in ("onnxruntime", "openvino"):
        found = rq.load(path, runtime=runtime)(images.numpy())
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_litert_packs_the_linear_layers_of_4_bits_alone(model, images, tmp_path):
    pytest.importorskip("ai_edge_litert", reason="pip install 'repquant[litert]'")
    from repquant.runtimes.litert import LitertRuntime
    from repquant.targets.litert_file import read_litert

    int8 = quantized(model, images, "litert")
    path = int8.save(tmp_path / "mixed.tflite")
    with torch.inference_mode():
        expected = int8(images).numpy()
    np.testing.assert_allclose(LitertRuntime(path, threads=1)(images.numpy()), expected, rtol=0, atol=1e-5)
    dtypes = {each.name: each.dtype for each in read_litert(path).tensors if each.name.endswith(".weight")}
    for name in ("hidden", "wide"):
        assert dtypes[f"{name}.weight"] == ("int4" if int8.plan.weight_bits[name] == 4 else "int8")
    assert all(dtypes[f"{name}.weight"] == "int8" for name in ("stem", "block", "depthwise"))


def test_a_higher_average_is_closer_to_float(model):
    images = torch.randn(128, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    # 16 images don't tell which layers lose most, and an average of 5 can't pay for these.
    networks = [quantized(model, images, "onnxruntime", average, wide=8) for average in (4, 6, 8)]
    with torch.inference_mode():
        reference = model(images)
        noise = [float((network(images) - reference).square().sum()) for network in networks]
    assert noise[0] > noise[1] > noise[2]


def test_training_goes_on_with_the_bits_of_each_layer(model, images):
    from repquant.qat.network import make_trainable, trained_integers

    int8 = quantized(model, images, "onnxruntime")
    network = make_trainable(int8.float_graph, int8.plan)
    rounded = trained_integers(network, int8.float_graph, int8.plan)
    assert {name: grid.scheme.bits for name, grid in rounded.plan.weight_grids.items()} == int8.plan.weight_bits


def test_a_search_holds_to_the_average(model, images):
    found = rq.search(
        model, [images], target=rq.resolve_target("onnxruntime"), held_back=[images], max_drop=100, average_bits=5
    )
    assert set(found.plan.weight_bits.values()) == {4, 8}
    with pytest.raises(InputError, match="`average_bits=2` was given; allowed is from 4 to 8"):
        rq.search(model, [images], target=rq.resolve_target("onnxruntime"), held_back=[images], average_bits=2)


@pytest.mark.parametrize(
    ("average_bits", "weight_bits", "words"),
    [(3, 8, "allowed is from 4 to 8"), (9, 8, "allowed is from 4 to 8"), (4.5, 4, "no layer gets more than 4 bits")],
)
def test_what_quantize_refuses_before_any_work(model, average_bits, weight_bits, words):
    def batches():
        raise AssertionError("read")
        yield

    target = rq.resolve_target("onnxruntime", weight_bits=weight_bits)
    with pytest.raises(InputError, match=words):
        rq.quantize(model, batches(), target=target, average_bits=average_bits)


def test_a_proof_records_the_bits(model, images):
    int8 = quantized(model, images, "onnxruntime")
    proof = rq.prove(model, int8, [images], runtimes=())
    assert proof.record.weight_bits == int8.plan.weight_bits
