"""The identity branch set apart, in integers: whatever the factor on the diagonal is."""

import pytest
import torch
from torch import nn

from repquant.models.network import make_block
from repquant.models.shortcut import split_identity
from repquant.models.spec import BlockSpec
from repquant.numerics.distance import sqnr_db
from repquant.quant.calibrate import activation_ranges, collect_histograms
from repquant.quant.convert import quantize_model
from repquant.quant.ptq import ROUNDINGS, PtqMethod, quantize
from repquant.quant.reconstruct import ReconstructionOptions
from repquant.targets.target import resolve_target

FACTORS = {"negative": -0.7, "zero": 0.0, "one": 1.0, "huge": 1e4}


def network(factor):
    """One block whose kernel has this factor on the diagonal of every second channel, and 1 on the others'."""
    torch.manual_seed(0)
    spec = BlockSpec(in_channels=16, out_channels=16, stride=1, groups=1, squeeze_excite=False)
    block = make_block(spec, "deploy").eval()
    diagonal = torch.where(torch.arange(16) % 2 == 0, factor, 1.0)
    block.conv.weight.data[torch.arange(16), torch.arange(16), 1, 1] = diagonal
    return nn.Sequential(block)


@pytest.fixture
def maps():
    return torch.randn(8, 16, 12, 12, generator=torch.Generator().manual_seed(1)).relu()


@torch.no_grad()
def channels_sqnr(model, quantized, x):
    """That of the channels with the factor, and that of the others: loud channels would drown quiet ones."""
    expected, found = model(x), quantized(x)
    assert found.isfinite().all()
    return sqnr_db(expected[:, ::2], found[:, ::2]), sqnr_db(expected[:, 1::2], found[:, 1::2])


def ranges_of(model, x, target):
    return activation_ranges("max", collect_histograms(model, [x]), target)


@pytest.mark.parametrize("kind", ["residual", "depthwise", "coarse-fine"])
@pytest.mark.parametrize("factor", FACTORS.values(), ids=FACTORS)
@pytest.mark.parametrize("target", ["openvino", "tensorrt"])
def test_no_factor_does_harm(maps, kind, factor, target):
    """The convolution adds in 32 bits there, so the channels do not share a grid: each has to be near its float one.

    A residual adds the input itself, so for factors that are not positive the convolution has to take it back.
    """
    model, target = network(factor), resolve_target(target)
    split = split_identity(model, kind)
    quantized = quantize_model(split, ranges_of(split, maps, target), target)
    with_factor, others = channels_sqnr(model, quantized, maps)
    assert others > 40
    assert with_factor > (19 if kind == "residual" and factor <= 0 else 37)


@pytest.mark.parametrize("factor", FACTORS.values(), ids=FACTORS)
def test_with_four_bits_apart_is_better_than_in_the_kernel(maps, factor):
    model, target = network(factor), resolve_target("openvino", weight_bits=4)
    split = split_identity(model, "depthwise")
    apart = channels_sqnr(model, quantize_model(split, ranges_of(split, maps, target), target), maps)
    fused = channels_sqnr(model, quantize_model(model, ranges_of(model, maps, target), target), maps)
    assert apart[1] > fused[1] + 15
    is_exact_in_the_kernel = factor in (0.0, 1e4)  # nothing to round, or all else drowns
    assert apart[0] > (fused[0] - 1 if is_exact_in_the_kernel else fused[0] + 15)


@pytest.mark.parametrize("factor", FACTORS.values(), ids=FACTORS)
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_sums_of_two_integers_and_every_rounding(maps, factor, rounding):
    """ONNX Runtime adds 8-bit terms: a huge channel sets the step of all there, so the output counts as a whole."""
    model, target = network(factor), resolve_target("onnxruntime")
    method = PtqMethod(identity="depthwise", rounding=rounding, reconstruction=ReconstructionOptions(steps=20))
    split = split_identity(model, "depthwise")
    quantized = quantize(split, ranges_of(split, maps, target), target, method, [maps])
    with torch.no_grad():
        assert sqnr_db(model(maps), quantized(maps)) > 25
