from dataclasses import replace

import pytest
import torch
from torch import nn

from repquant.errors import InputError
from repquant.graph.capture import capture
from repquant.graph.copies import copy_graph
from repquant.methods import reconstruct as module
from repquant.methods.layer_ends import LayerEnd, find_ends
from repquant.methods.reconstruct import ReconstructionOptions, check_checkpoint, reconstruct
from repquant.numerics.distance import sqnr_db
from repquant.simulation.network import simulate
from repquant.targets.target import resolve_target

FAST = ReconstructionOptions(steps=5, batch=32)


class Interruption:
    """Stops a run after a number of steps, as Ctrl-C does."""

    def __init__(self, after):
        self.left = after

    def __call__(self, steps):
        self.left -= steps
        if self.left < 0:
            raise KeyboardInterrupt


def same(first, second):
    """Whether two results are bit-identical."""
    states = (first.graph.state_dict(), second.graph.state_dict())
    grids = (first.plan.weight_grids, second.plan.weight_grids)
    return all(torch.equal(x, states[1][name]) for name, x in states[0].items()) and all(
        torch.equal(grid.scale, grids[1][name].scale) for name, grid in grids[0].items()
    )


@pytest.fixture(scope="module")
def coarse(mixed, images, plan):
    return plan(mixed, [images], resolve_target("openvino", weight_bits=4))


def test_ends_of_layers(mixed):
    at_their_outputs = find_ends(mixed, "layer")
    assert at_their_outputs["block"] == LayerEnd(node="block")
    ends = find_ends(mixed, "block")
    followed = {name for name, end in ends.items() if end.relu}
    assert followed == {"stem", "block", "grouped", "shortcut", "gate.down"}
    assert ends["stem"] == LayerEnd(node="stem", relu=True)
    assert ends["block"].node.startswith("add")  # the sum with what the block read
    assert ends["block"].addend == 1
    assert ends["shortcut"].addend == 0  # computed last, so the other summand is known
    assert ends["depthwise"] == LayerEnd(node="depthwise")  # the shortcut comes later
    assert ends["mixer"] == LayerEnd(node="mixer")  # no ReLU behind the sum


@pytest.mark.parametrize("granularity", ["layer", "block"])
def test_the_network_comes_closer_to_float(mixed, coarse, images, granularity):
    options = ReconstructionOptions(steps=80, batch=64, granularity=granularity)
    rounded = reconstruct(mixed, coarse, images.split(4), options)
    with torch.no_grad():
        expected = mixed(images)
        nearest, learned = simulate(mixed, coarse)(images), rounded.simulated()(images)
    assert sqnr_db(expected, learned) > sqnr_db(expected, nearest) + 3


def test_steps_are_smaller_where_large_weights_hardly_matter(images, plan, monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3))
    model[2].weight.data[:, 0] *= 6
    model[0].weight.data[0] /= 60
    model[0].bias.data[0] = 0
    graph = capture(model, images)
    few = plan(graph, [images], resolve_target("openvino", weight_bits=4))
    options = ReconstructionOptions(steps=80, batch=64)
    chosen = reconstruct(graph, few, [images], options)
    monkeypatch.setattr(module, "keeps_range", lambda _: True)
    whole = reconstruct(graph, few, [images], options)
    assert (chosen.plan.weight_grids["2"].scale < 0.8 * whole.plan.weight_grids["2"].scale).all()
    with torch.no_grad():
        expected = graph(images)
        assert sqnr_db(expected, chosen.simulated()(images)) > sqnr_db(expected, whole.simulated()(images)) + 3


def test_the_rows_are_what_the_kernel_sees(images, plan):
    """An exact problem: with inputs and weights on their grids the error is zero, and no weight has to move."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1, dilation=2), nn.Flatten(2)).eval()
    pixels = torch.randint(0, 256, images.shape, generator=torch.Generator().manual_seed(0)) / 255
    model[0].weight.data = torch.randint(-127, 128, model[0].weight.shape) / 127
    model[0].weight.data[:, 0, 0, 0] = 1.0
    graph = capture(model, pixels)
    rounded = reconstruct(
        graph, plan(graph, [pixels], resolve_target("onnxruntime")), [pixels], replace(FAST, steps=60)
    )
    layer = rounded.graph.get_submodule("0")
    assert torch.allclose(layer.weight, model[0].weight, atol=1e-6)
    assert torch.allclose(layer.bias, model[0].bias, atol=1e-4)


def test_a_transposed_convolution_is_rounded_to_nearest_and_counts(mixed, coarse, images):
    done = []
    rounded = reconstruct(mixed, coarse, [images], FAST, on_step=done.append)
    nearest = simulate(mixed, coarse).get_submodule("up").integers
    assert torch.equal(rounded.simulated().get_submodule("up").integers.weight, nearest.weight)
    assert sum(done) == FAST.steps * len(coarse.layout.layers)


def test_an_interrupted_run_goes_on_to_the_same_result(mixed, coarse, images, tmp_path):
    options, file = replace(FAST, drop=0.5, affine=True, granularity="block"), tmp_path / "folder" / "file"
    expected = reconstruct(mixed, coarse, [images], options)
    with pytest.raises(KeyboardInterrupt):
        reconstruct(mixed, coarse, [images], options, on_step=Interruption(5 * options.steps), checkpoint=file)
    check_checkpoint(mixed, coarse, [images], options, file)
    for _ in range(2):  # the second time everything is in the file
        done = []
        assert same(reconstruct(mixed, coarse, [images], options, on_step=done.append, checkpoint=file), expected)
        assert sum(done) == options.steps * len(coarse.layout.layers)
    assert len(done) == 1


def test_a_checkpoint_of_other_arguments_is_refused(mixed, coarse, images, plan, tmp_path):
    file, options = tmp_path / "file", replace(FAST, steps=1)
    reconstruct(mixed, coarse, [images], options, checkpoint=file)
    changed = copy_graph(mixed)
    changed.get_submodule("head").bias.data[0] += 1e-3
    finer = plan(mixed, [images], resolve_target("openvino", weight_bits=6))
    for name, arguments in {
        "options": (mixed, coarse, [images], replace(options, seed=3)),
        "network": (changed, coarse, [images], options),
        "images": (mixed, coarse, [images + 1e-3], options),
        "grids": (mixed, finer, [images], options),
    }.items():
        with pytest.raises(InputError, match=rf"of another reconstruction, with other {name}; give .* or remove it"):
            check_checkpoint(*arguments, file)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match="damaged or no checkpoint of a reconstruction"):
        reconstruct(mixed, coarse, [images], options, checkpoint=file)


def test_what_can_not_be_learned_is_refused(mixed, coarse, images, plan):
    with pytest.raises(InputError, match="no calibration images"):
        reconstruct(mixed, coarse, [])
    per_tensor = plan(mixed, [images], resolve_target("openvino", per_tensor_weights=True))
    with pytest.raises(InputError, match=r"one per tensor; quantize the weights per channel, or .* without affine"):
        reconstruct(mixed, per_tensor, [images], replace(FAST, affine=True))
    with pytest.raises(InputError, match="`granularity='stage'` was given; allowed is one of layer, block"):
        ReconstructionOptions(granularity="stage")
