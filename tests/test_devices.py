"""Another device than the CPU: a stand-in everywhere, CUDA where there is a GPU."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import repquant as rq
from fake_device import second_device
from repquant.graph.capture import capture
from repquant.graph.devices import device_of, full_precision, on_device
from repquant.graph.linear import merge
from repquant.methods.reconstruct import ReconstructionOptions
from repquant.numerics.histogram import Histogram
from repquant.simulation.layers import QuantizedLayer
from third_party import randomized

CPU = torch.device("cpu")


class Small(nn.Module):
    """Branches, groups, a transposed convolution, a product of activations and a linear layer on sequences."""

    def __init__(self):
        super().__init__()
        self.wide, self.narrow, self.bn = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.grouped, self.up = nn.Conv2d(4, 8, 3, 2, 1, groups=2), nn.ConvTranspose2d(8, 6, 2, 2)
        self.mix, self.head = nn.Linear(6, 6), nn.Linear(6, 5)

    def forward(self, x):
        x = F.relu(self.bn(self.wide(x)) + self.narrow(x) + x)
        x = F.relu(self.up(F.relu(self.grouped(x))))
        rows = self.mix(x.flatten(2).transpose(1, 2))
        rows = rows @ (rows.transpose(1, 2) @ rows)
        return self.head(rows.mean(1))


@pytest.fixture(scope="module")
def images():
    return torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def graph(images):
    return merge(capture(randomized(Small()), images))


def same_integers(one, other):
    """The share of equal weights of two results of `quantize`."""
    weights = [(layer.integers.weight.cpu(), name) for name, layer in layers(one).items()]
    equal = [(weight == layers(other)[name].integers.weight.cpu()).double() for weight, name in weights]
    return torch.cat([part.flatten() for part in equal]).mean().item()


def layers(int8):
    return {name: layer for name, layer in int8.module.named_modules() if isinstance(layer, QuantizedLayer)}


METHODS = {
    "feedback": rq.PtqMethod(),
    "nearest": rq.PtqMethod(rounding="nearest", equalization="ranges", weight_ranges="mse"),
    "learned": rq.PtqMethod(rounding="learned", identity="residual", reconstruction=ReconstructionOptions(steps=4)),
}


@pytest.mark.parametrize("name", ["feedback", "nearest"])
def test_quantize_stays_on_the_device_of_the_network(graph, images, name, tmp_path):
    expected = rq.quantize(graph, [images], target="tensorrt", method=METHODS[name])
    with second_device() as device:
        int8 = rq.quantize(on_device(graph, device), [images], target="tensorrt", method=METHODS[name])
        assert device_of(int8.module) == device
        output = int8(images.to(device)).cpu()
        assert same_integers(expected, int8) == 1
        torch.testing.assert_close(output, expected(images), rtol=1e-4, atol=1e-5)


def test_integers_are_added_up_exactly_in_float64(graph, images):
    for layer in layers(rq.quantize(graph, [images], target="onnxruntime", rounding_images=0)).values():
        shape = (2, 6, layer.in_features) if isinstance(layer, nn.Linear) else (2, layer.in_channels, 6, 6)
        steps = torch.randint(-128, 256, shape, generator=torch.Generator().manual_seed(0)).float()
        assert torch.equal(layer._exact(steps), super(QuantizedLayer, layer).forward(steps))


def test_training_stays_there(graph, images):
    with second_device() as device:
        network = rq.prepare_qat(on_device(graph, device), [images], target="tensorrt", rounding_images=0)
        optimizer = torch.optim.AdamW(network.parameter_groups(0.01))
        x = images.to(device)
        network.distillation_loss(network(x), x).backward()
        optimizer.step()
        assert device_of(rq.finish_qat(network).float_graph) == device


def test_a_histogram_counts_the_same_on_a_device(images):
    on_cpu, elsewhere = Histogram(), Histogram()
    for part in (images[:4], 2 * images[4:]):
        on_cpu.update(part)
        with second_device() as device:
            elsewhere.update(part.to(device))
    assert (on_cpu.counts == elsewhere.counts).all()


def test_full_precision_is_for_the_block_alone():
    conv = torch.backends.cudnn.conv
    before = conv.fp32_precision
    with full_precision(torch.device("cuda")):
        assert conv.fp32_precision == torch.backends.cuda.matmul.fp32_precision == "ieee"
    assert conv.fp32_precision == before


def test_the_stand_in_finds_what_is_mixed():
    with second_device() as device:
        there = torch.ones(3).to(device)
        with pytest.raises(RuntimeError, match="tensors on two devices"):
            there + torch.ones(3)
        assert (there + torch.tensor(1.0)).device == device


@pytest.mark.cuda
@pytest.mark.parametrize("name", METHODS)
def test_quantize_on_cuda(graph, images, name, tmp_path, cuda):
    expected = rq.quantize(graph, [images], target="onnxruntime", method=METHODS[name])
    int8 = rq.quantize(on_device(graph, cuda), [images], target="onnxruntime", method=METHODS[name])
    # Sums of floats are in another order, so a weight half-way between two integers may go the other way.
    assert same_integers(expected, int8) >= 0.99
    simulated = on_device(expected.module, cuda)
    torch.testing.assert_close(simulated(images.to(cuda)).cpu(), expected(images), rtol=1e-5, atol=1e-6)
    assert int8.save(tmp_path / "cuda.onnx").is_file()


@pytest.mark.cuda
def test_each_layer_gives_the_same_integers_on_cuda(graph, images, cuda):
    int8 = rq.quantize(graph, [images], target="onnxruntime")
    seen = {}
    hooks = [
        layer.register_forward_hook(lambda _layer, given, y, name=name: seen.update({name: (given[0], y)}))
        for name, layer in layers(int8).items()
    ]
    int8(images)
    for hook in hooks:
        hook.remove()
    for name, layer in layers(int8).items():
        x, y = seen[name]
        assert torch.equal(layer.to(cuda)(x.to(cuda)).cpu(), y), name


@pytest.mark.cuda
def test_a_step_of_qat_on_cuda(images, cuda):
    losses = {}
    for device in (CPU, cuda):
        network = rq.prepare_qat(randomized(Small()).to(device), [images], target="tensorrt", rounding_images=0)
        optimizer = torch.optim.AdamW(network.parameter_groups(0.01))
        x, losses[device.type] = images.to(device), []
        for _ in range(2):
            loss = network.distillation_loss(network(x), x)
            losses[device.type].append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert rq.finish_qat(network)(x).device.type == device.type
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=0.05)
