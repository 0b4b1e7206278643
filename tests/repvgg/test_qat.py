from dataclasses import replace

import pytest
import torch
from torch import nn

from repquant.errors import InputError
from repquant.graph.layout import find_layout
from repquant.graph.plan import make_plan
from repquant.methods.calibrate import activation_ranges, collect_histograms
from repquant.methods.kernel_rounding import SHARES
from repquant.methods.ptq import PtqMethod
from repquant.methods.weight_grids import least_squares_grid
from repquant.models.blocks import RepVGGBlock
from repquant.models.fuse import identity_kernel
from repquant.models.reparam import reparameterize
from repquant.numerics.channel_fit import ChannelFit
from repquant.qat.network import make_trainable, qat_layers, trained_integers
from repquant.qat.quantizers import WEIGHT_SCALES
from repquant.repvgg.insert_bn import insert_bn, measure_outputs
from repquant.repvgg.kernels import FoldedKernel
from repquant.repvgg.qat_start import StartOptions, bare_start, captured, rounded_deploy, start_qat
from repquant.simulation.network import quantized_layers, simulate
from repquant.targets.target import resolve_target

METHODS = ("plain", "equivalent-kernel", "inserted-bn")


def start_of(model, images, method, target, equalization="none", rounding="nearest", keep_float=()):
    options = StartOptions(method=method, ptq=PtqMethod(equalization=equalization, rounding=rounding), calibrator="max")
    return start_qat(model, options, target, lambda: [images], lambda: [images], keep_float)


def network_of(start, **options):
    return make_trainable(start.graph, start.plan, sources=start.sources, **options)


def finished_of(network, start):
    return trained_integers(network, start.graph, start.plan).simulated()


def per_output(scale, kernel):
    return scale.reshape(-1, *[1] * (kernel.dim() - 1))


def freeze(network):
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


def train(network, images, steps=3, rate=0.01):
    network.train()
    freeze(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        network(images).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("target_name", ["tensorrt", "onnxruntime"])
def test_training_begins_with_the_model_of_ptq(branches, images, method, target_name):
    target = resolve_target(target_name)
    start = start_of(branches, images, method, target)
    graph = captured(reparameterize(branches))
    layout = find_layout(graph, target)
    ranges = activation_ranges("max", collect_histograms(graph, layout, [images]), target)
    expected = simulate(graph, make_plan(layout, ranges, target))
    network = network_of(start).eval()
    with torch.no_grad():
        found, aim = network(images), expected(images)
    assert torch.allclose(found, aim, atol=0.02 * float(aim.abs().max()))
    finished = quantized_layers(finished_of(network, start))
    for name, layer in quantized_layers(expected).items():
        ours = finished[name].integers.weight
        assert int((layer.integers.weight.int() - ours.int()).abs().max()) <= 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("scales", "bits"), [*((scales, 8) for scales in WEIGHT_SCALES), ("learned", 4)])
def test_the_exported_integers_are_those_that_training_saw(branches, images, method, scales, bits):
    target = resolve_target("tensorrt", weight_bits=bits)
    start = start_of(branches, images, method, target)
    network = network_of(start, weight_scales=scales)
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    train(network, images)
    assert any(not torch.equal(before[name], parameter) for name, parameter in network.named_parameters())
    network.eval()
    seen = {}

    def record(name):
        def hook(quantizer, inputs, rounded):
            kernel, bias, input_scale = inputs
            grid = quantizer.grid(kernel, bias, input_scale)
            steps, bias_steps = (
                rounded[0].detach() / per_output(grid.scale, kernel),
                rounded[1] / (input_scale * grid.scale),
            )
            assert torch.allclose(steps, steps.round(), atol=1e-3)
            seen[name] = steps.round().to(torch.int8), bias_steps.detach()

        return hook

    for name, layer in qat_layers(network).items():
        layer.weight.register_forward_hook(record(name))
    network(images)
    finished = finished_of(network, start)
    layers = quantized_layers(finished)
    assert seen.keys() == layers.keys()
    for name, layer in layers.items():
        assert torch.equal(layer.integers.weight, seen[name][0]), name
        # float32 holds the steps of a large bias to its last bits only
        assert torch.allclose(layer.integers.bias.float(), seen[name][1], rtol=1e-6, atol=1e-2), name
    with torch.no_grad():
        simulated, trained = finished(images), network(images)
    assert torch.allclose(simulated, trained, atol=0.02 * float(trained.abs().max()) + 1e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("weight_bits", "activation_bits"), [(8, 8), (4, 4)])
def test_activations_in_training_are_those_of_the_integers(branches, images, method, weight_bits, activation_bits):
    target = resolve_target("tensorrt", weight_bits=weight_bits, activation_bits=activation_bits)
    start = start_of(branches, images, method, target, "noise", "feedback")
    network = network_of(start, weight_scales="max" if method == "inserted-bn" else "fixed")
    train(network, images)
    finished = finished_of(network, start)
    trained, served = {}, {}

    def record(name, into, steps):
        return lambda layer, inputs: into.update({name: steps(layer, inputs[0])})

    for name, layer in qat_layers(network).items():
        layer.register_forward_pre_hook(record(name, trained, lambda m, x: x / m.input.scale))
    for name, layer in quantized_layers(finished).items():
        layer.register_forward_pre_hook(record(name, served, lambda m, x: m.input.steps(x)))
    with torch.no_grad():
        network(images)
        finished(images)
    assert trained.keys() == served.keys()
    for name, steps in trained.items():
        # Sums of rounded floats and of integers round at the last bit; a step's border is hardly ever there.
        assert float((steps.round() != served[name]).double().mean()) < 1e-3, name


def test_gradients_reach_every_parameter_of_the_branches(branches, images):
    target = resolve_target("tensorrt")
    network = network_of(start_of(branches, images, "equivalent-kernel", target), weight_scales="learned")
    network.train()
    network(images).square().mean().backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    # Behind squeeze-and-excite a shift of all channels can be without effect on this loss, nothing else can.
    assert [name for name in without if "source.block" in name] == []
    assert any("identity" in name for name, _ in network.named_parameters())


def test_one_convolution_a_block(branches, images):
    target = resolve_target("tensorrt")
    network = network_of(start_of(branches, images, "equivalent-kernel", target)).train()
    called = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d | RepVGGBlock):
            module.register_forward_hook(lambda *_: called.append(1))
    network(images)
    assert called == []


def test_kept_layers_stay_in_float_and_train(branches, images):
    target = resolve_target("tensorrt")
    start = start_of(branches, images, "plain", target, keep_float=("first", "last"))
    network = network_of(start)
    assert isinstance(network.head, nn.Linear)
    before = network.head.weight.detach().clone()
    train(network, images)
    finished = finished_of(network, start)
    assert torch.equal(finished.head.weight, network.head.weight)
    assert not torch.equal(finished.head.weight, before)


def test_scales_of_activations_are_learned_or_not(branches, images):
    target = resolve_target("tensorrt")
    start = start_of(branches, images, "plain", target)
    for learned in (True, False):
        network = network_of(start, learned_activations=learned)
        before = network.head.input.scale.detach().clone()
        train(network, images)
        assert torch.equal(network.head.input.scale, before) is not learned
        assert not isinstance(network.stem.conv.input.scale, nn.Parameter)


def test_inserted_normalizations_see_the_batch_until_they_are_frozen(branches, images):
    target = resolve_target("tensorrt")
    network = network_of(start_of(branches, images, "inserted-bn", target)).train()
    source = network.stem.conv.source
    assert isinstance(source, FoldedKernel)
    before = source.bn.running_mean.clone()
    network(images + 1)
    assert not torch.equal(source.bn.running_mean, before)
    freeze(network)
    before = source.bn.running_mean.clone()
    frozen = network(images + 1)
    assert torch.equal(source.bn.running_mean, before)
    assert torch.allclose(network.eval()(images + 1), frozen)


def test_a_bare_start_takes_everything_from_a_state_dict(branches, images):
    target = resolve_target("onnxruntime")
    for method in METHODS:
        start = start_of(branches, images, method, target, equalization="noise", rounding="feedback")
        network = network_of(start, weight_scales="fixed")
        train(network, images)
        bare = bare_start(branches, StartOptions(method=method, ptq=PtqMethod()), target)
        resumed = network_of(bare, weight_scales="fixed")
        resumed.load_state_dict(network.state_dict())
        first, second = finished_of(network, start), finished_of(resumed, bare)
        assert torch.equal(first(images), second(images))


@pytest.mark.parametrize("method", METHODS)
def test_the_start_is_the_best_of_ptq(branches, images, method):
    """Equalized and rounded with feedback, for every method: the branches have taken it up."""
    target = resolve_target("tensorrt")
    errors = {}
    aim = reparameterize(branches)(images).detach()
    for equalization, rounding in (("none", "nearest"), ("noise", "feedback")):
        start = start_of(branches, images, method, target, equalization, rounding)
        network = network_of(start).eval()
        errors[rounding] = float((network(images) - aim).detach().square().mean())
    assert errors["feedback"] < errors["nearest"]


@pytest.mark.parametrize(("bits", "default"), [(4, "loss-aware"), (8, "mse")])
def test_training_starts_from_the_ranges_of_the_default(branches, images, bits, default):
    target = resolve_target("openvino", activation_bits=bits)

    def grids(**options):
        method = PtqMethod(equalization="none", rounding="nearest")
        start = start_qat(
            branches, StartOptions(method="plain", ptq=method, **options), target, *[lambda: [images]] * 2
        )
        return start.plan.grids

    assert grids(calibrator="mse") != grids(calibrator="loss-aware")
    assert grids() == grids(calibrator=default)


@pytest.mark.parametrize(("rounding", "bits"), [("nearest", 4), ("feedback", 8), ("feedback", 4)])
def test_training_starts_from_the_chosen_grids(branches, images, rounding, bits, monkeypatch):
    if rounding == "feedback":  # so few images are just enough for a gain here and there
        monkeypatch.setattr(ChannelFit, "gains", lambda _, **__: torch.ones(()))
    method = PtqMethod(equalization="none", weight_ranges="mse", rounding=rounding)
    options, target = (
        StartOptions(method="plain", ptq=method, calibrator="max"),
        resolve_target("tensorrt", weight_bits=bits),
    )
    start = start_qat(branches, options, target, lambda: [images], lambda: [images])
    deploy = reparameterize(branches)
    for name, grid in start.plan.weight_grids.items():
        expected = least_squares_grid(deploy.get_submodule(name), start.plan.input_scale(name), target.weight)
        if rounding == "nearest" or bits == 8:
            assert torch.equal(grid.scale, expected.scale), name
        else:  # one of the shares each
            shares = (grid.scale / expected.scale).unsqueeze(1) - torch.tensor(SHARES)
            assert (shares.abs().amin(1) < 1e-5).all(), name
    assert start.plan.weight_grids.keys() == start.plan.layout.layers.keys()


def test_what_can_not_start():
    with pytest.raises(InputError, match='pass `identity="fused"` or "residual"'):
        StartOptions(method="plain", ptq=PtqMethod(identity="depthwise"))
    with pytest.raises(InputError, match=r"inserted-bn.* folds whole kernels"):
        StartOptions(method="inserted-bn", ptq=PtqMethod(identity="residual"))
    with pytest.raises(InputError, match='pass `rounding="feedback"` or "nearest"'):
        StartOptions(method="plain", ptq=PtqMethod(rounding="learned"))


def test_a_deploy_model_has_no_branches_to_train(network, images):
    with pytest.raises(InputError, match=r'its branches are fused .* pass `method="plain"`'):
        start_of(network, images, "equivalent-kernel", resolve_target("tensorrt"))


def test_a_source_of_a_layer_that_is_not_rounded_is_refused(branches, images):
    start = start_of(branches, images, "equivalent-kernel", resolve_target("tensorrt"))
    sources = {**start.sources, "stem.convolution": start.sources["stem.conv"]}
    with pytest.raises(InputError, match=r"kernels were given for stem\.convolution; rounded layers"):
        network_of(replace(start, sources=sources))


def test_inserted_statistics_can_come_from_elsewhere(branches, images):
    target = resolve_target("tensorrt")
    deploy = reparameterize(branches)
    inserted = insert_bn(deploy, measure_outputs(deploy, [2 * images]))
    options = StartOptions(method="inserted-bn", ptq=PtqMethod(equalization="none", rounding="nearest"))
    start = start_qat(branches, options, target, lambda: [images], list, inserted=inserted)
    assert torch.equal(start.sources["stem.conv"].bn.running_mean, inserted.stem.conv.bn.running_mean)


@pytest.mark.parametrize("method", ["plain", "equivalent-kernel"])
@pytest.mark.parametrize("target_name", ["tensorrt", "onnxruntime"])
def test_identities_set_apart_train_as_residuals(branches, images, method, target_name):
    target = resolve_target(target_name, weight_bits=4)
    options = StartOptions(method=method, ptq=PtqMethod(identity="residual"), calibrator="max")
    start = start_qat(branches, options, target, lambda: [images], lambda: [images])
    network = network_of(start)
    train(network, images)
    finished = finished_of(network, start)
    with torch.no_grad():
        simulated, trained = finished(images), network(images)
    assert torch.allclose(simulated, trained, atol=0.02 * float(trained.abs().max()) + 1e-4)
    resumed = network_of(bare_start(branches, options, target))
    resumed.load_state_dict(network.state_dict())
    assert torch.equal(finished_of(resumed, start)(images), finished(images))


@pytest.mark.parametrize("identity", ["fused", "residual"])
def test_the_float_model_that_is_saved_has_the_rounded_weights(branches, images, identity):
    target = resolve_target("tensorrt", weight_bits=4)
    options = StartOptions(method="equivalent-kernel", ptq=PtqMethod(identity=identity), calibrator="max")
    start = start_qat(branches, options, target, lambda: [images], lambda: [images])
    network = network_of(start, weight_scales="fixed")
    train(network, images)
    finished = trained_integers(network, start.graph, start.plan)
    simulated = finished.simulated()
    rounded = rounded_deploy(start, finished.graph, simulated)
    assert rounded.state_dict().keys() == reparameterize(branches).state_dict().keys()
    for name, layer in quantized_layers(simulated).items():
        weight = layer.integers.float_weight()
        if name in start.residuals:
            weight += identity_kernel(len(weight), layer.groups)
        assert torch.equal(rounded.get_parameter(f"{name}.weight"), weight), name
    assert start.residuals == (["stages.1.1.conv"] if identity == "residual" else [])
    with torch.no_grad():
        expected = finished.graph(images)
        assert torch.allclose(rounded(images), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
