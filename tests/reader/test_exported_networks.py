"""Networks of other packages, written by torch's exporters: read, merged, quantized, and run by ONNX Runtime."""

from pathlib import Path

import onnxruntime
import pytest
import torch
from onnx_files import Logits, export
from torch import Tensor, fx

import repquant as rq
from repquant.numerics.distance import sqnr_db
from third_party import network

GROUPS = {
    "convnext_atto": 12,
    "fastvit_t8": 30,
    "mobileone_s0": 43,
    "pplcnetv3": 28,
    "repvgg_a0": 22,
    "repvit_m0_9": 23,
    "textnet": 15,
}
"""Merged sums of branches, as many as in the modules that the files came from (graph/test_third_party.py)."""

QUICK = ["resnet18", "repvgg_a0"]
OTHERS = [
    "convnext_atto",
    "fastvit_t8",
    "hgnetv2_b0",
    "levit_128s",
    "mobilenetv2_100",
    "mobilenetv3_small_100",
    "mobileone_s0",
    "mobilevit_xxs",
    "pplcnetv3",
    "regnetx_002",
    "repvit_m0_9",
    "textnet",
    "tf_efficientnet_lite0",
    "vit_tiny_patch16_224",
]


def images(name: str, count: int) -> torch.Tensor:
    size = 224 if name in ("levit_128s", "vit_tiny_patch16_224") else 64
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def merged(name: str, exporter: str, tmp_path: Path) -> fx.GraphModule:
    module, x = Logits(network(name)).eval(), images(name, 3)
    read = rq.read_onnx(export(module, x[:2], tmp_path / "float.onnx", exporter))
    with torch.no_grad():
        expected, given = module(x[:3]), read(x[:3])
    assert float((given - expected).abs().max() / expected.abs().max()) < 1e-4
    deploy = rq.reparameterize(read, x[:2])
    assert len(deploy.meta["reparameterization"].groups) == GROUPS.get(name, 0)
    with torch.no_grad():
        assert float((deploy(x[:3]) - expected).abs().max() / expected.abs().max()) < 1e-4
    return deploy


def look_at_integers(name: str, deploy: fx.GraphModule, tmp_path: Path) -> None:
    x = images(name, 14)
    int8 = rq.quantize(deploy, [x[:8]], target="onnxruntime", rounding_images=4)
    int8.save(tmp_path / "int8.onnx")
    with torch.no_grad():
        expected, simulated = deploy(x[8:]), int8(x[8:])
    executed = torch.from_numpy(rq.load(tmp_path / "int8.onnx")(x[8:].numpy()))
    # Untrained, some amplify one flipped integer: there ONNX Runtime is as far from itself without optimizations.
    parity = float(sqnr_db(simulated, executed))
    if parity <= min(40, 10 + float(sqnr_db(expected, simulated))):
        assert parity >= float(sqnr_db(unoptimized(tmp_path / "int8.onnx", x[8:]), executed))


def unoptimized(path: Path, x: Tensor) -> Tensor:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options)
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


@pytest.mark.parametrize("name", QUICK)
def test_a_network(name, tmp_path):
    merged(name, "script", tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1200)  # on a busy machine the exporters take minutes
@pytest.mark.parametrize("exporter", ["script", "program"])
@pytest.mark.parametrize("name", [*QUICK, *OTHERS])
def test_more_networks(name, exporter, tmp_path):
    look_at_integers(name, merged(name, exporter, tmp_path), tmp_path)
