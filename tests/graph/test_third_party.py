"""Networks of other packages, unchanged: what they compute stays, and every linear branch is found."""

from functools import cache

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from repquant.graph.linear import MergeReport
from repquant.load import load
from repquant.numerics.distance import sqnr_db
from repquant.quantize import quantize
from repquant.reparameterize import reparameterize
from third_party import network, transformers_network


@cache
def merged(name: str, size: int = 64) -> MergeReport:
    """Reparameterize a network once, look at that it computes the same, and return the report."""
    module, x = network(name), torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    deploy = reparameterize(module, x)
    with torch.no_grad():
        for actual, expected in zip(floats(deploy(x)), floats(module(x)), strict=True):
            assert float((actual - expected).abs().max() / expected.abs().max()) < 2e-5
    return deploy.meta["reparameterization"]


def floats(outputs: object) -> list[Tensor]:
    leaves = pytree.tree_leaves(outputs)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def test_a_network_of_depthwise_branches():
    report = merged("lcnetv2_small")
    assert (report.convolutions_after, len(report.groups)) == (36, 6)
    assert report.groups[-1].name == "stages.2.0.dw_conv_list.reparam"


def test_a_residual_network_has_nothing_to_merge():
    report = merged("resnet18")
    assert (report.convolutions_after, report.groups, report.refused) == (20, (), ())


@pytest.mark.slow
@pytest.mark.timeout(1200)  # on a busy machine the exporter takes minutes
@pytest.mark.parametrize(
    ("name", "convolutions", "groups"),
    [
        ("repvgg_a0", 22, 22),
        ("mobileone_s0", 43, 43),
        ("repvit_m0_9", 103, 23),
        ("fastvit_t8", 52, 30),
        ("mobilenetv2_100", 52, 0),
        ("textnet", 16, 15),
        ("pplcnetv3", 33, 28),
    ],
)
def test_every_linear_branch_is_found(name, convolutions, groups):
    report = merged(name)
    assert (report.convolutions_after, len(report.groups)) == (convolutions, groups)
    assert report.refused == ()


@pytest.mark.slow
@pytest.mark.timeout(1200)  # on a busy machine the exporter takes minutes
def test_a_detector_with_repconv_blocks_and_frozen_normalization():
    report = merged("rt_detr", 256)
    assert report.convolutions_after == 53
    assert sum(group.paths > 1 for group in report.groups) == 12


@pytest.mark.slow
@pytest.mark.timeout(1200)  # on a busy machine the exporter takes minutes
def test_a_detector_that_selects_queries_is_equal_up_to_the_selection():
    """D-FINE takes the 300 best of 1,344 places; untrained, scores are closer than rounding, and places swap."""
    module = transformers_network("DFineForObjectDetection", "DFineConfig", num_labels=10)
    x = torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    deploy = reparameterize(module, x)
    with torch.no_grad():
        actual, expected = deploy(x), module(x)
    for name in ("enc_outputs_class", "enc_outputs_coord_logits"):
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-5, atol=1e-5)
    assert deploy.meta["reparameterization"].convolutions_after == 145


@pytest.mark.slow
@pytest.mark.timeout(1200)  # on a busy machine the exporter takes minutes
@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_a_detector_in_integers_up_to_the_selection(target, tmp_path):
    """The decoder stays in float; what is selected can't be compared, as the scores of an untrained one lie so near."""
    noise = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    x = F.interpolate(noise, size=256, mode="bilinear")
    deploy = reparameterize(network("rt_detr"), x[:2])
    int8 = quantize(deploy, x[:6].split(2), target=target, rounding_images=4)
    floats = {layer.name: layer.reason for layer in int8.layers if layer.precision == "float32"}
    decoder = [name for name in floats if name.startswith("model.decoder") or name.startswith("decoder")]
    assert decoder
    assert all(floats[name].startswith("behind the selection") for name in decoder if "value_proj" not in name)
    int8.save(tmp_path / "detector.onnx")
    with torch.no_grad():
        expected, simulated = deploy(x[6:]), int8(x[6:])
    runtime = load(tmp_path / "detector.onnx", runtime=target)
    executed = dict(zip(runtime.outputs, runtime(x[6:].numpy()), strict=True))
    scores = "enc_outputs_class"
    assert sqnr_db(expected[scores], simulated[scores]) > 25
    assert sqnr_db(simulated[scores], torch.as_tensor(executed[scores])) > 45
