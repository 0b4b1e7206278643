"""The library's verb, on our own networks: what the family's adapter computes, found without its classes."""

import pytest
import torch
from torch import nn

import repquant
from repquant.models import reparam
from repquant.models.network import build
from repquant.models.spec import ArchSpec
from repquant.models.zoo import get_spec
from third_party import randomized

SMALL = {"blocks": (1, 2, 2, 1), "widths": (0.25, 0.25, 0.25, 0.5)}


def assert_as_the_adapter(spec: ArchSpec, size: int) -> None:
    model = randomized(build(spec, num_classes=10))
    x = torch.randn(2, 3, size, size)
    deploy, adapter = repquant.reparameterize(model, x), reparam.reparameterize(model)
    with torch.no_grad():
        expected = adapter(x)
        assert float((deploy(x) - expected).abs().max() / expected.abs().max()) < 1e-5
    called = [deploy.get_submodule(node.target) for node in deploy.graph.nodes if node.op == "call_module"]
    kernels = [layer.kernel_size for layer in called if isinstance(layer, nn.Conv2d)]
    assert kernels.count((3, 3)) == 1 + sum(spec.blocks)
    gates = 2 * (1 + sum(spec.blocks)) if spec.squeeze_excite else 0
    assert len(kernels) == 1 + sum(spec.blocks) + gates


@pytest.mark.parametrize(
    "spec",
    [
        ArchSpec(name="groups", groups=4, **SMALL),
        ArchSpec(name="gates", squeeze_excite=True, **SMALL),
        ArchSpec(name="QARepVGG", block="qarepvgg", **SMALL),
        ArchSpec(name="RepOpt search", block="repopt-search", **SMALL),
    ],
    ids=lambda spec: spec.name,
)
def test_our_networks_become_what_their_adapter_makes_of_them(spec):
    assert_as_the_adapter(spec, 32)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["RepVGG-A0", "RepVGG-B1g4", "RepVGG-D2se", "QARepVGG-A0", "RepOpt-VGG-A0-search"])
def test_published_sizes_become_what_their_adapter_makes_of_them(name):
    assert_as_the_adapter(get_spec(name), 64)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'reparametrize'"):
        repquant.reparametrize  # noqa: B018
