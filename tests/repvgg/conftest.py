import pytest
import torch

from repquant.models.network import build
from repquant.models.reparam import reparameterize
from repquant.models.spec import ArchSpec


def make_network(seed=0, squeeze_excite=False, classes=5, **spec):
    """A network of a few thousand weights with all kinds of blocks, and statistics that are not trivial."""
    torch.manual_seed(seed)
    spec = ArchSpec(
        name="few", blocks=(1, 2, 1, 1), widths=(0.25, 0.125, 0.0625, 0.03125), squeeze_excite=squeeze_excite, **spec
    )
    model = build(spec, classes).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2.0)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(std=0.1)
    return model


def deploy_network(seed=0, squeeze_excite=False, classes=5):
    """The same with one convolution a block."""
    return reparameterize(make_network(seed, squeeze_excite, classes))


@pytest.fixture(params=[False, True], ids=["plain", "squeeze-excite"])
def network(request):
    return deploy_network(squeeze_excite=request.param)


@pytest.fixture(params=[False, True], ids=["plain", "squeeze-excite"])
def branches(request):
    return make_network(squeeze_excite=request.param)


@pytest.fixture
def training_network():
    """Make a network in training form; other classes or kinds of blocks on request."""
    return make_network


@pytest.fixture
def images():
    return torch.randn(8, 3, 32, 48, generator=torch.Generator().manual_seed(1))
