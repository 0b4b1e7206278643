import pytest
import torch
from torch import nn

from repquant.graph.capture import capture
from repquant.qat.distillation import output_loss
from repquant.qat.kernels import KernelSource
from repquant.qat.layer import QatLayer
from repquant.qat.network import activation_quantizers, make_trainable, qat_layers, trained_graph, trained_integers
from repquant.qat.quantizers import WEIGHT_SCALES, ActivationQuantizer
from repquant.simulation.network import quantized_layers, simulate
from repquant.targets.target import resolve_target

LAYERS = {"stem.0", "body", "gate", "up", "row", "map", "head"}


def loss_to(network, graph, images):
    with torch.no_grad():
        aims = [*graph(images).values()]
    return output_loss([*network(images).values()], aims)


def train(network, graph, images, steps=2, rate=3e-3):
    optimizer = torch.optim.Adam(network.train().parameters(), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_to(network, graph, images).backward()
        optimizer.step()


@pytest.mark.parametrize("name", ["tensorrt", "onnxruntime"])
def test_training_begins_with_what_is_simulated(mixed, images, plan_of, name):
    plan = plan_of(mixed, resolve_target(name))
    network = make_trainable(mixed, plan).eval()
    assert qat_layers(network).keys() == LAYERS
    assert activation_quantizers(network).keys() == plan.layout.tensors.keys()
    with torch.no_grad():
        found, expected = network(images), simulate(mixed, plan)(images)
    for output in ("logits", "map"):
        assert torch.allclose(found[output], expected[output], atol=0.02 * float(expected[output].abs().max())), output


@pytest.mark.parametrize(("scales", "bits"), [*((scales, 8) for scales in WEIGHT_SCALES), ("learned", 4)])
def test_the_integers_are_those_that_training_saw(mixed, images, plan_of, scales, bits):
    plan = plan_of(mixed, resolve_target("onnxruntime", weight_bits=bits))
    network = make_trainable(mixed, plan, weight_scales=scales)
    train(network, mixed, images)
    seen = {}
    for name, layer in qat_layers(network).items():
        layer.weight.register_forward_hook(lambda _m, _i, rounded, name=name: seen.update({name: rounded}))
    with torch.no_grad():
        trained = network.eval()(images)
    finished = trained_integers(network, mixed, plan)
    simulated = finished.simulated()
    for name, layer in quantized_layers(simulated).items():
        weight, bias = seen[name]
        assert torch.equal(layer.integers.float_weight(), weight), name
        assert torch.equal(finished.graph.get_parameter(f"{name}.weight"), weight), name
        if bias is not None:
            assert torch.allclose(layer.integers.float_bias(), bias, rtol=1e-6, atol=1e-7), name
    for output, value in simulated(images).items():
        assert torch.allclose(value, trained[output], atol=0.02 * float(trained[output].abs().max())), output


@pytest.mark.parametrize("scales", WEIGHT_SCALES)
def test_training_brings_few_bits_nearer_to_float(mixed, images, plan_of, scales):
    plan = plan_of(mixed, resolve_target("tensorrt", weight_bits=3, activation_bits=4))
    network = make_trainable(mixed, plan, weight_scales=scales)
    before = float(loss_to(network, mixed, images).detach())
    train(network, mixed, images, steps=10)
    assert float(loss_to(network, mixed, images).detach()) < 0.9 * before


def test_a_tensor_with_several_readers_is_rounded_once(mixed, plan_of, images):
    plan = plan_of(mixed, resolve_target("tensorrt"))
    network = make_trainable(mixed, plan)
    layers = qat_layers(network)
    residual = plan.layout.layers["body"]
    assert len(plan.layout.tensors[residual].readers) == 2
    quantizer = activation_quantizers(network)[residual]
    assert layers["body"].input is quantizer
    calls = []
    quantizer.register_forward_hook(lambda *_: calls.append(1))
    network(images)
    assert calls == [1]
    assert sum(isinstance(module, ActivationQuantizer) for module in network.modules()) == len(plan.grids)


def test_scales_are_learned_but_for_the_images(mixed, plan_of, images):
    plan = plan_of(mixed, resolve_target("tensorrt"))
    for learned in (True, False):
        network = make_trainable(mixed, plan, weight_scales="fixed", learned_activations=learned)
        scales = {name: quantizer.scale for name, quantizer in activation_quantizers(network).items()}
        with_gradient = {name for name, scale in scales.items() if scale.requires_grad}
        assert with_gradient == (scales.keys() - {"x"} if learned else set())
        loss_to(network, mixed, images).backward()
        assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


def test_layers_in_float_train_as_they_are(mixed, plan_of, images):
    plan = plan_of(mixed, resolve_target("tensorrt"), ["head", "up"])
    network = make_trainable(mixed, plan)
    assert type(network.head) is nn.Linear
    train(network, mixed, images)
    finished = trained_integers(network, mixed, plan).graph
    for name in ("head", "up"):
        assert torch.equal(finished.get_parameter(f"{name}.weight"), network.get_parameter(f"{name}.weight"))
        assert not torch.equal(finished.get_parameter(f"{name}.weight"), mixed.get_parameter(f"{name}.weight"))


class Doubled(KernelSource):
    """Half of the kernel is the parameter."""

    def __init__(self, layer):
        super().__init__()
        self.part = nn.Parameter(layer.weight.detach() / 2)

    def forward(self):
        return 2 * self.part, None


def test_a_kernel_may_come_from_elsewhere(mixed, plan_of, images):
    plan = plan_of(mixed, resolve_target("tensorrt"))
    network = make_trainable(mixed, plan, sources={"map": Doubled(mixed.map)})
    assert {name for name, _ in network.map.named_parameters()} == {"source.part", "input.scale"}
    before = mixed.map.weight.detach().clone()
    assert torch.equal(trained_graph(network, mixed).map.weight, before)
    train(network, mixed, images)
    assert torch.equal(trained_graph(network, mixed).map.weight, 2 * network.map.source.part)
    assert torch.equal(mixed.map.weight, before)


class Relus(nn.Module):
    def __init__(self):
        super().__init__()
        self.alone, self.shared, self.last = (nn.Conv2d(3, 3, 1) for _ in range(3))

    def forward(self, x):
        y = self.shared(torch.relu(self.alone(torch.relu(x))))
        return self.last(torch.relu(y)) + y


def test_only_what_nobody_else_reads_is_overwritten(images, plan_of):
    torch.manual_seed(0)
    graph = capture(Relus().eval(), images)
    plan = plan_of(graph, resolve_target("tensorrt"))
    network = make_trainable(graph, plan)
    overwriting = [node for node in network.graph.nodes if node.target is torch.ops.aten.relu_.default]
    assert [node.args[0].target for node in overwriting] == ["alone"]
    before = images.clone()
    expected = simulate(graph, plan)(images)
    found = network(images)
    assert torch.equal(images, before)
    assert torch.allclose(found, expected, atol=1e-5)
    found.square().sum().backward()
    assert all(isinstance(layer, QatLayer) for layer in qat_layers(network).values())
