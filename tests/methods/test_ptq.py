"""The whole path on graphs: equal to the old engine on RepVGG as long as it exists, and sound on other networks."""

import importlib.util
from pathlib import Path

import pytest
import torch

from repquant.errors import InputError
from repquant.graph.capture import capture
from repquant.graph.copies import copy_graph
from repquant.graph.run import run
from repquant.methods.ptq import ROUNDINGS, PtqMethod, prepare, progress_total, round_graph
from repquant.methods.reconstruct import ReconstructionOptions
from repquant.numerics.distance import sqnr_db
from repquant.quant import ptq as old
from repquant.quant.calibrate import activation_ranges, collect_histograms
from repquant.quant.convert import layer_pairs
from repquant.simulation.network import quantized_layers
from repquant.targets.target import resolve_target

LEARNING = {
    "layer": {"steps": 10},
    "block": {"steps": 10, "granularity": "block"},
    "all": {"steps": 10, "drop": 0.5, "affine": True, "loss": "mae", "seed": 3},
}


def old_network():
    path = Path(__file__).parent.parent / "quant" / "conftest.py"
    spec = importlib.util.spec_from_file_location("old_networks", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.deploy_network()


@pytest.fixture(scope="module")
def repvgg():
    """No test may change it."""
    return old_network()


@pytest.fixture(scope="module")
def captured(repvgg, images):
    """No test may change it."""
    return capture(repvgg, images)


@pytest.mark.parametrize(
    ("target", "identity", "weight_ranges", "rounding", "learning"),
    [
        ("tensorrt", "fused", "max", "nearest", "layer"),
        ("tensorrt", "depthwise", "mse", "feedback", "layer"),
        ("tensorrt", "coarse-fine", "mse", "nearest", "layer"),
        ("tensorrt", "residual", "max", "learned", "block"),
        ("onnxruntime", "fused", "mse", "feedback", "layer"),
        ("onnxruntime", "residual", "mse", "nearest", "layer"),
        ("onnxruntime", "coarse-fine", "max", "feedback", "layer"),
        ("onnxruntime", "residual", "max", "learned", "all"),
        ("openvino", "residual", "mse", "feedback", "layer"),
        ("openvino", "fused", "max", "learned", "layer"),
    ],
)
def test_repvgg_gets_the_integers_of_the_old_engine(
    repvgg, captured, images, plan, target, identity, weight_ranges, rounding, learning
):
    target, kept = resolve_target(target, weight_bits=5), ["last"]
    choices = {
        "equalization": "none",
        "identity": identity,
        "weight_ranges": weight_ranges,
        "rounding": rounding,
    }
    method = old.PtqMethod(reconstruction=old.ReconstructionOptions(**LEARNING[learning]), **choices)
    prepared = old.prepare(repvgg, method, target, [images])
    ranges = activation_ranges("max", collect_histograms(prepared, [images]), target)
    expected = layer_pairs(prepared, old.quantize(prepared, ranges, target, method, [images], kept))

    method = PtqMethod(reconstruction=ReconstructionOptions(**LEARNING[learning]), **choices)
    graph = prepare(captured, method, target, [images], kept)
    batches = [images[:3], images[3:]] if rounding == "feedback" else [images]
    found = quantized_layers(round_graph(graph, plan(graph, [images], target, kept), method, batches).simulated())
    named = {name.replace(".conv_shortcut", ".shortcut"): layer.integers for name, layer in found.items()}
    assert named.keys() == expected.keys()
    for name, (_, layer) in expected.items():
        assert torch.equal(named[name].weight, layer.integers.weight), name
        assert torch.equal(named[name].weight_grid.scale, layer.integers.weight_grid.scale), name
        if layer.bias is not None:
            assert torch.equal(named[name].bias, layer.integers.bias), name


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime", "openvino"])
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_any_network_comes_close_to_float(mixed, images, plan, target, rounding):
    target = resolve_target(target)
    method = PtqMethod(equalization="none", rounding=rounding, reconstruction=ReconstructionOptions(steps=20))
    batches = images.split(3)
    whole = plan(mixed, batches, target)
    before = copy_graph(mixed).state_dict()
    done = []
    rounded = round_graph(mixed, whole, method, batches, done.append)
    assert sum(done) == progress_total(whole, method, len(images))
    assert len(whole.layout.layers) == 11
    assert all(torch.equal(before[key], value) for key, value in mixed.state_dict().items())
    with torch.no_grad():
        assert sqnr_db(mixed(images), rounded.simulated()(images)) > 25


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_two_inputs_and_a_dict_of_outputs(two_inputs, pairs, plan, rounding):
    target = resolve_target("onnxruntime")
    method = PtqMethod(equalization="none", rounding=rounding, reconstruction=ReconstructionOptions(steps=20))
    rounded = round_graph(two_inputs, plan(two_inputs, pairs, target), method, pairs)
    simulated = rounded.simulated()
    with torch.no_grad():
        assert set(simulated(*pairs[0])) == {"map", "logits"}
        for expected, found in zip(run(two_inputs, pairs[0]), run(simulated, pairs[0]), strict=True):
            assert sqnr_db(expected, found) > 25


@pytest.mark.parametrize("rounding", ["feedback", "learned"])
def test_windows_of_an_image_along_the_batch_are_seen_all(images, plan, rounding):
    """Rows of a layer's input need not be images."""

    class Windows(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inside, self.head = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Linear(8, 4)

        def forward(self, x):
            windows = x.unflatten(3, (3, 8)).permute(0, 3, 1, 2, 4).flatten(0, 1)
            y = torch.relu(self.inside(windows)).mean((2, 3))
            return self.head(y).unflatten(0, (-1, 3)).mean(1)

    torch.manual_seed(0)
    graph = capture(Windows().eval(), images)
    target = resolve_target("openvino", weight_bits=4)
    nearest, better = (
        round_graph(
            graph,
            plan(graph, [images], target),
            PtqMethod(equalization="none", rounding=rounding, reconstruction=ReconstructionOptions(steps=300)),
            batches,
        ).simulated()
        for batches in ([], images.split(3))
    )
    with torch.no_grad():
        expected = graph(images)
        assert sqnr_db(expected, better(images)) > sqnr_db(expected, nearest(images)) + 3


def test_without_images_weights_go_to_the_nearest(mixed, images, plan):
    whole = plan(mixed, [images], resolve_target("tensorrt"))
    for rounding in ROUNDINGS:
        rounded = round_graph(mixed, whole, PtqMethod(rounding=rounding), [])
        assert all(torch.equal(rounded.graph.state_dict()[key], value) for key, value in mixed.state_dict().items())


@pytest.mark.parametrize("field", ["equalization", "identity", "weight_ranges", "rounding"])
def test_unknown_names_are_refused(field):
    with pytest.raises(InputError, match="'best' was given; allowed are"):
        PtqMethod(**{field: "best"})
