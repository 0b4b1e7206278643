import pytest
import torch
from torch import nn

from repquant.errors import InputError
from repquant.numerics.affine import fake_quantize, grid_for_range
from repquant.numerics.ranges import CALIBRATORS
from repquant.quant.calibrate import activation_ranges, collect_histograms
from repquant.quant.convert import quantization_points
from repquant.targets.target import resolve_target


def test_histograms_see_the_input_of_every_point(network, images):
    histograms = collect_histograms(network, [images[:4], images[4:]])
    assert list(histograms) == list(quantization_points(network))
    stem = histograms["stem.conv"]
    assert stem.total == images.numel()
    assert stem.minimum == pytest.approx(images.min().item())
    assert stem.maximum == pytest.approx(images.max().item())
    assert histograms["stages.0.0.conv"].minimum == 0.0


def test_no_hook_is_left_and_training_state_is_kept(network, images):
    collect_histograms(network, [images])
    assert all(not module._forward_pre_hooks for module in network.modules())


def test_ranges_of_every_calibrator(network, images):
    histograms = collect_histograms(network, [images])
    ranges = {name: activation_ranges(name, histograms, resolve_target("tensorrt")) for name in CALIBRATORS}
    assert all(set(found) == set(histograms) for found in ranges.values())
    assert ranges["max"]["stem.conv"][1] >= ranges["percentile"]["stem.conv"][1]


def test_progress_counts_images(network, images):
    seen = []
    collect_histograms(network, [images[:3], images[3:]], on_batch=seen.append)
    assert seen == [3, 5]


def test_no_images(network):
    with pytest.raises(InputError, match="no calibration images"):
        collect_histograms(network, [])


def test_an_activation_that_is_not_finite_names_its_layer(network, images):
    network.stem.conv.bias.data[0] = float("nan")
    with pytest.raises(InputError, match=r"input of layer (stem\.se|stages\.0\.0\.conv): .*NaN"):
        collect_histograms(network, [images])


@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_a_layer_that_only_sees_zeros(calibrator):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    nn.init.constant_(model[0].bias, -1e3)
    histograms = collect_histograms(model, [torch.rand(2, 3, 4, 4)])
    assert activation_ranges(calibrator, histograms, resolve_target("tensorrt"))["2"] == (0.0, 0.0)


@pytest.mark.parametrize("value", [3.0, -3.0, 1e-40])
@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_a_layer_that_only_sees_one_value(calibrator, target, value):
    model = nn.Conv2d(3, 2, 1).eval()
    histograms = collect_histograms(model, [torch.full((2, 3, 4, 4), value)])
    target = resolve_target(target)
    ((low, high),) = activation_ranges(calibrator, histograms, target).values()
    grid = grid_for_range(low, high, target.activation)
    x = torch.tensor([value])
    assert fake_quantize(x, grid).item() == pytest.approx(value, rel=1e-2, abs=1e-37)
