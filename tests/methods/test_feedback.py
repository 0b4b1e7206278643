import pytest
import torch
from torch import nn

from repquant.errors import InputError
from repquant.graph.capture import capture
from repquant.graph.layout import find_layout
from repquant.graph.plan import make_plan
from repquant.methods import feedback
from repquant.methods.calibrate import activation_ranges, collect_histograms
from repquant.methods.feedback import round_weights
from repquant.numerics.distance import sqnr_db
from repquant.simulation.network import quantized_layers, simulate
from repquant.targets.target import resolve_target


def gain_db(graph, images, plan):
    """How much closer to float the outputs come than with weights rounded to the nearest."""
    with torch.no_grad():
        expected, nearest = graph(images), simulate(graph, plan)(images)
        return sqnr_db(expected, round_weights(graph, plan, [images]).simulated()(images)) - sqnr_db(expected, nearest)


@pytest.mark.parametrize("bits", [4, 8])
def test_outputs_come_closer_to_float(mixed, images, plan, bits):
    assert gain_db(mixed, images, plan(mixed, [images], resolve_target("onnxruntime", weight_bits=bits))) > 0.5


def test_integers_are_the_ones_that_the_rounding_chose(mixed, images, plan):
    coarse = plan(mixed, [images], resolve_target("tensorrt", weight_bits=6), ["first"])
    before = {name: value.clone() for name, value in mixed.state_dict().items()}
    counted = []
    rounded = round_weights(mixed, coarse, [images], on_layer=counted.append)
    assert sum(counted) == len(coarse.layout.layers)
    assert all(torch.equal(before[name], value) for name, value in mixed.state_dict().items())
    assert torch.equal(rounded.graph.get_submodule("stem").weight, mixed.get_submodule("stem").weight)
    layers = quantized_layers(rounded.simulated())
    assert layers.keys() == coarse.layout.layers.keys()
    for name, layer in layers.items():
        assert torch.allclose(
            layer.integers.float_weight(), rounded.graph.get_submodule(name).weight, rtol=1e-6, atol=1e-9
        )
        assert layer.integers.weight.abs().max() <= 31


@pytest.mark.parametrize("padding", [{"padding": "same"}, {"padding": 1, "padding_mode": "reflect"}])
@pytest.mark.parametrize("per_tensor", [False, True])
def test_groups_paddings_and_layers_without_bias(images, plan, padding, per_tensor):
    torch.manual_seed(0)
    graph = capture(
        nn.Sequential(nn.Conv2d(3, 8, 3, bias=False, **padding), nn.ReLU(), nn.Conv2d(8, 12, 3, groups=4, **padding)),
        images,
    )
    target = resolve_target("tensorrt", weight_bits=4, per_tensor_weights=per_tensor)
    assert gain_db(graph, images, plan(graph, [images], target)) > 0.4


@pytest.mark.parametrize("per_tensor", [False, True])
def test_what_clipping_made_smaller_grows_again(per_tensor):
    torch.manual_seed(0)
    images = torch.randn(256, 3, 8, 8)
    graph = capture(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)), images)
    clipping = clipped(graph, images, resolve_target("onnxruntime", per_tensor_weights=per_tensor))
    with torch.no_grad():
        wanted, nearest = graph(images), simulate(graph, clipping)(images)
        given = round_weights(graph, clipping, [images]).simulated()(images)
    assert slope(wanted, nearest) < 0.95
    assert slope(wanted, given) == pytest.approx(1, abs=0.02)


def test_loud_images_that_are_clipped_do_not_decide_for_the_others():
    torch.manual_seed(0)
    images = torch.randn(64, 3, 8, 8)
    graph = capture(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)), images)
    target = resolve_target("onnxruntime")
    layout = find_layout(graph, target)
    loud = make_plan(
        layout, activation_ranges("max", collect_histograms(graph, layout, [images, 1.5 * images[:8]]), target), target
    )
    with torch.no_grad():
        wanted = graph(images)
        given = round_weights(graph, loud, [images, 4 * images[:8]]).simulated()(images)
    assert slope(wanted, given) == pytest.approx(1, abs=0.02)
    assert sqnr_db(wanted, given) > 30


def test_without_a_bias_gains_do_not_move_the_mean():
    torch.manual_seed(0)
    images = torch.randn(256, 3, 8, 8)
    graph = capture(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3, bias=False)), images)
    graph.get_submodule("2").weight.data.abs_()
    clipping = clipped(graph, images, resolve_target("onnxruntime"))
    with torch.no_grad():
        wanted, nearest = graph(images), simulate(graph, clipping)(images)
        given = round_weights(graph, clipping, [images]).simulated()(images)
    assert (given - wanted).square().mean() < 0.9 * (nearest - wanted).square().mean()
    assert abs(given.mean() / wanted.mean() - 1) < abs(nearest.mean() / wanted.mean() - 1)


def test_layers_give_back_what_the_layers_before_them_lost(plan, monkeypatch):
    torch.manual_seed(0)
    images, others = nn.functional.avg_pool2d(torch.randn(512, 3, 12, 12), 3, 1).chunk(2)
    layers = [nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3)]
    graph = capture(nn.Sequential(*layers), images)
    coarse = plan(graph, [images], resolve_target("openvino", weight_bits=4))

    def lost_db():
        with torch.no_grad():
            return -sqnr_db(graph(others), round_weights(graph, coarse, [images]).simulated()(others))

    corrected = lost_db()
    monkeypatch.setattr(feedback, "correct_weights", lambda weight, *_: weight)
    assert corrected < lost_db() - 0.5


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_channels_that_never_vary_keep_their_kernels(images, plan, target):
    torch.manual_seed(0)
    graph = capture(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 4, 1)),
        images,
    )
    stem = graph.get_submodule("0")
    with torch.no_grad():
        stem.weight[:3] = 0
        stem.bias[:3] = torch.tensor([0.3, 0.7, -1.0])
    assert gain_db(graph, images, plan(graph, [images], resolve_target(target))) > -0.5


def clipped(graph, images, target):
    """Return a plan whose grid for the input of the last layer ends at a third of the largest value."""
    layout = find_layout(graph, target)
    ranges = activation_ranges("max", collect_histograms(graph, layout, [images]), target)
    hidden = layout.layers["2"]
    ranges[hidden] = (0.0, ranges[hidden][1] / 3)
    return make_plan(layout, ranges, target)


def slope(x, y):
    """By how much the channels of y grow with those of x, the mean over the channels."""
    x, y = (each - each.mean((0, 2, 3), keepdim=True) for each in (x, y))
    return float((x * y).sum() / (x * x).sum())


def test_no_images(mixed, images, plan):
    with pytest.raises(InputError, match="no calibration images"):
        round_weights(mixed, plan(mixed, [images], resolve_target("tensorrt")), [])
