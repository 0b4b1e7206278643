import pytest
import torch
from torch import nn

from repquant.errors import InputError
from repquant.graph.capture import capture
from repquant.graph.layout import find_layout
from repquant.methods.calibrate import activation_ranges, collect_histograms
from repquant.numerics.affine import fake_quantize, grid_for_range
from repquant.numerics.ranges import CALIBRATORS
from repquant.targets.target import resolve_target


def histograms_of(graph, batches, on_batch=lambda _: None):
    return collect_histograms(graph, find_layout(graph, resolve_target("tensorrt")), batches, on_batch)


def test_ranges_of_every_calibrator(mixed, images):
    layout, seen = find_layout(mixed, resolve_target("tensorrt")), []
    histograms = collect_histograms(mixed, layout, images.split(3), seen.append)
    assert seen == [3, 3, 2]
    assert histograms.keys() == layout.tensors.keys()
    ranges = {name: activation_ranges(name, histograms, resolve_target("tensorrt")) for name in CALIBRATORS}
    assert all(found.keys() == layout.tensors.keys() for found in ranges.values())
    stem = layout.layers["stem"]
    low, high = ranges["max"][stem]
    assert max(-low, high) == float(images.abs().max())


def test_no_images(mixed):
    with pytest.raises(InputError, match="no calibration images"):
        histograms_of(mixed, [])


def test_an_activation_that_is_not_finite_names_its_layer(images):
    graph = capture(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)), images)
    graph.get_submodule("0").bias.data[0] = float("nan")
    with pytest.raises(InputError, match="input of 2: an activation is NaN or infinite"):
        histograms_of(graph, [images])


@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_a_layer_that_only_sees_zeros(calibrator, images):
    graph = capture(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)), images)
    nn.init.constant_(graph.get_submodule("0").bias, -1e3)
    ranges = activation_ranges(calibrator, histograms_of(graph, [images]), resolve_target("tensorrt"))
    assert ranges[find_layout(graph, resolve_target("tensorrt")).layers["2"]] == (0.0, 0.0)


@pytest.mark.parametrize("value", [3.0, -3.0, 1e-40])
@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_a_layer_that_only_sees_one_value(calibrator, target, value):
    x = torch.full((2, 3, 4, 4), value)
    target = resolve_target(target)
    ((low, high),) = activation_ranges(calibrator, histograms_of(capture(nn.Conv2d(3, 2, 1), x), [x]), target).values()
    grid = grid_for_range(low, high, target.activation)
    assert fake_quantize(x[:1, 0, 0, 0], grid).item() == pytest.approx(value, rel=1e-2, abs=1e-37)
