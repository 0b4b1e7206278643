import pytest
import torch

from repquant.models.network import build
from repquant.models.reparam import reparameterize
from repquant.models.spec import ArchSpec


def deploy_network(seed=0, squeeze_excite=False, classes=5):
    """A network of a few thousand weights with all kinds of blocks, and statistics that are not trivial."""
    torch.manual_seed(seed)
    spec = ArchSpec(
        name="few", blocks=(1, 2, 1, 1), widths=(0.25, 0.125, 0.0625, 0.03125), squeeze_excite=squeeze_excite
    )
    model = build(spec, classes).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2.0)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(std=0.1)
    return reparameterize(model)


@pytest.fixture(params=[False, True], ids=["plain", "squeeze-excite"])
def network(request):
    return deploy_network(squeeze_excite=request.param)


@pytest.fixture
def images():
    return torch.randn(8, 3, 32, 48, generator=torch.Generator().manual_seed(1))
