"""The steps as the verbs take them: what a person is told."""

from types import SimpleNamespace

import pytest
import torch

from repquant.cli.quantizing import calibrate
from repquant.graph.capture import capture
from repquant.methods.identity import count_identities
from repquant.methods.ptq import PtqMethod
from repquant.models.network import build
from repquant.models.reparam import reparameterize
from repquant.models.spec import ArchSpec
from repquant.targets.target import resolve_target


class Images:
    """Two batches of noise."""

    images = 8

    def __iter__(self):
        generator = torch.Generator().manual_seed(0)
        return (SimpleNamespace(images=torch.randn(4, 3, 32, 32, generator=generator)) for _ in range(2))


@pytest.mark.parametrize("blocks", [(1, 1, 1, 1), (1, 2, 1, 1)])
@pytest.mark.parametrize("identity", ["residual", "depthwise", "fused"])
def test_a_network_without_identity_branches_is_told_of_and_calibrated(capsys, blocks, identity):
    torch.manual_seed(0)
    spec = ArchSpec(name="few", blocks=blocks, widths=(0.25, 0.125, 0.0625, 0.03125))
    model = reparameterize(build(spec, 5).eval())
    method, target = PtqMethod(equalization="none", identity=identity), resolve_target("openvino")
    graph = capture(model, torch.zeros(2, 3, 32, 32))
    has_none = count_identities(graph) == 0
    assert has_none == (blocks == (1, 1, 1, 1))
    calibrated = calibrate(graph, method, target, SimpleNamespace(ranges=Images()), ()).calibrated
    told = "no layer has room for an identity branch: there is nothing to set apart" in capsys.readouterr().err
    assert told == (has_none and identity != "fused")
    assert all(histogram.total > 0 for histogram in calibrated.histograms.values())
