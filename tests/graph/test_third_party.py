"""Networks of other packages, unchanged: what they compute stays, and every linear branch is found."""

from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from repquant.graph.linear import MergeReport
from repquant.reparameterize import reparameterize
from third_party import timm_network, transformers_network


class FinestMap(nn.Module):
    """The last feature map of a backbone that lists them."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x):
        return self.backbone(x).feature_maps[-1]


def rt_detr() -> nn.Module:
    backbone = {
        "embedding_size": 16,
        "hidden_sizes": [16, 64, 128, 256],
        "layer_type": "basic",
        "depths": [2, 2, 2, 2],
        "downsample_in_bottleneck": False,
        "out_features": ["stage2", "stage3", "stage4"],
        "model_type": "rt_detr_resnet",
    }
    return transformers_network(
        "RTDetrForObjectDetection",
        "RTDetrConfig",
        backbone_config=backbone,
        encoder_in_channels=[64, 128, 256],
        d_model=64,
        encoder_hidden_dim=64,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        num_queries=50,
        decoder_in_channels=[64, 64, 64],
        decoder_layers=2,
        decoder_attention_heads=4,
        encoder_attention_heads=4,
        num_labels=10,
    )


NETWORKS = {
    "repvgg_a0": lambda: timm_network("repvgg_a0"),
    "mobileone_s0": lambda: timm_network("mobileone_s0"),
    "repvit_m0_9": lambda: timm_network("repvit_m0_9"),
    "fastvit_t8": lambda: timm_network("fastvit_t8"),
    "lcnetv2_small": lambda: timm_network("lcnetv2_small"),
    "resnet18": lambda: timm_network("resnet18"),
    "mobilenetv2_100": lambda: timm_network("mobilenetv2_100"),
    "textnet": lambda: transformers_network("TextNetForImageClassification", "TextNetConfig", num_labels=10),
    "pplcnetv3": lambda: FinestMap(transformers_network("PPLCNetV3Backbone", "PPLCNetV3Config")),
    "rt_detr": rt_detr,
}


@cache
def merged(name: str, size: int = 64) -> MergeReport:
    """Reparameterize a network once, look at that it computes the same, and return the report."""
    network, x = NETWORKS[name](), torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    deploy = reparameterize(network, x)
    with torch.no_grad():
        for actual, expected in zip(floats(deploy(x)), floats(network(x)), strict=True):
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
    network = transformers_network("DFineForObjectDetection", "DFineConfig", num_labels=10)
    x = torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    deploy = reparameterize(network, x)
    with torch.no_grad():
        actual, expected = deploy(x), network(x)
    for name in ("enc_outputs_class", "enc_outputs_coord_logits"):
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-5, atol=1e-5)
    assert deploy.meta["reparameterization"].convolutions_after == 145
