"""The whole path on graphs, for RepVGG and for other networks."""

import pytest
import torch

from repquant.choices import ROUNDINGS
from repquant.errors import InputError
from repquant.graph.capture import capture
from repquant.graph.copies import copy_graph
from repquant.graph.run import run
from repquant.methods.ptq import PtqMethod, prepare, progress_total, round_graph
from repquant.methods.reconstruct import ReconstructionOptions
from repquant.models.network import build
from repquant.models.reparam import reparameterize
from repquant.models.spec import ArchSpec
from repquant.numerics.distance import sqnr_db
from repquant.targets.target import resolve_target


@pytest.fixture(scope="module")
def repvgg():
    """A captured RepVGG of a few thousand weights; no test may change it."""
    torch.manual_seed(0)
    model = build(ArchSpec(name="few", blocks=(1, 2, 1, 1), widths=(0.25, 0.125, 0.0625, 0.03125)), 5)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2.0)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(std=0.1)
    return capture(reparameterize(model.eval()), torch.zeros(2, 3, 32, 32))


@pytest.mark.parametrize(("rounding", "level"), [("feedback", 38), ("learned", 33), ("nearest", 34)])
@pytest.mark.parametrize(
    ("target", "identity"),
    [
        ("tensorrt", "fused"),
        ("tensorrt", "residual"),
        ("onnxruntime", "depthwise"),
        ("onnxruntime", "coarse-fine"),
        ("openvino", "residual"),
    ],
)
def test_the_error_of_repvgg_with_five_bits(repvgg, plan, target, identity, rounding, level):
    target = resolve_target(target, weight_bits=5)
    method = PtqMethod(identity=identity, rounding=rounding, reconstruction=ReconstructionOptions(steps=50))
    smooth = torch.nn.functional.interpolate(
        torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1)), size=(32, 32), mode="bilinear"
    )
    graph = prepare(repvgg, method, target, [smooth], ["last"])
    simulated = round_graph(graph, plan(graph, [smooth], target, ["last"]), method, [smooth]).simulated()
    assert isinstance(simulated.head, torch.nn.Linear)
    with torch.no_grad():
        assert sqnr_db(repvgg(smooth), simulated(smooth)) > level


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
    with pytest.raises(InputError, match="best'` was given; allowed is one of"):
        PtqMethod(**{field: "best"})
