"""Networks of timm and transformers, unchanged: all layers in integers, 25 dB, the same classes in the runtime.

On photographs where REPQUANT_DATA is set, else on smooth random images. `python tests/parity/test_networks.py
TARGET [NETWORK ...]` prints the rows of results/networks.md.
"""

import io
import os
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from agreement import ENGINES, WEIGHT_BITS
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))
from repquant.graph.run import run
from repquant.numerics.distance import sqnr_db
from repquant.quantize import quantize
from repquant.reparameterize import reparameterize
from repquant.targets.target import resolve_target
from third_party import network

NETWORKS = (
    "resnet18",
    "repvgg_a0",
    "mobileone_s0",
    "repvit_m0_9",
    "fastvit_t8",
    "lcnetv2_small",
    "repghostnet_050",
    "mobilenetv2_100",
    "regnetx_002",
    "mobilenetv3_small_100",
    "efficientnet_lite0",
    "hgnetv2_b0",
    "textnet",
    "pplcnetv3",
)
# Untrained, they amplify each rounding, or have peaks that lie far out and a GELU behind: results/networks.md.
BELOW_THE_AIM = ("fastvit_t8", "repvit_m0_9", "efficientnet_lite0", "mobilenetv2_100")
LEAST_SQNR_DB = 25.0
SIZE = 64
CALIBRATION = 32


def images(count: int) -> Tensor:
    """Normalized images (count, 3, 64, 64)."""
    folder = os.environ.get("REPQUANT_DATA")
    if not folder:
        noise = torch.randn(count, 3, SIZE // 4, SIZE // 4, generator=torch.Generator().manual_seed(0))
        return F.interpolate(noise, size=SIZE, mode="bilinear")
    with zipfile.ZipFile(Path(folder) / "imagenette160.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.lower().endswith((".jpeg", ".jpg")))
        chosen = names[:: len(names) // count][:count]
        pixels = [np.asarray(_square(Image.open(io.BytesIO(archive.read(name))).convert("RGB"))) for name in chosen]
    x = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (x - mean.view(3, 1, 1)) / std.view(3, 1, 1)


def _square(image: Image.Image) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side)).resize((SIZE, SIZE))


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A row of the table; SQNR in decibels, shares of the validation images.

    Attributes:
        convolutions: after merging linear branches.
        layers: that compute in integers.
        floats: layer or operator -> why it computes in float.
        conditioning_db: SQNR of the float network's outputs under noise of -40 dB on its input. Where it is low, the
            network with these weights amplifies any noise, that of rounding too.
        sqnr_db: of the simulation's outputs.
        same_top1: engine -> share of images with the simulation's class.
        float_products: engine -> layers that it runs in float.
    """

    network: str
    target: str
    convolutions: int
    layers: int
    floats: Mapping[str, str]
    conditioning_db: float
    sqnr_db: float
    same_top1: Mapping[str, float]
    float_products: Mapping[str, list[str]]

    def __str__(self) -> str:
        """The row in Markdown."""
        reasons = "; ".join(f"{name}: {reason}" for name, reason in self.floats.items()) or "none"
        runtimes = [
            f"{100 * share:.1f} ({len(self.float_products[name])} in float)" for name, share in self.same_top1.items()
        ]
        figures = [self.convolutions, self.layers, f"{self.conditioning_db:.1f}", f"{self.sqnr_db:.1f}", *runtimes]
        return f"| {self.network} | {self.target} | {' | '.join(map(str, figures))} | {reasons} |"


def measure(name: str, target: str, path: Path, x: Tensor) -> Measured:
    """Quantize a network by default on the first images and compare on the others."""
    graph = reparameterize(network(name), x[:2])
    schemes = resolve_target(target, weight_bits=8 if target == "onnxruntime" else WEIGHT_BITS)
    validation = x[CALIBRATION:]
    noise = torch.randn(validation.shape, generator=torch.Generator().manual_seed(1)) * validation.std() / 100
    int8 = quantize(graph, [x[:CALIBRATION]], target=schemes)
    with torch.inference_mode():
        (reference,), (disturbed,) = run(graph, validation), run(graph, validation + noise)
        (simulated,) = run(int8.module, validation)
    int8.save(path)
    engines = {engine: runtime(path, 1) for engine, runtime in ENGINES.items()}
    classes = simulated.argmax(1).numpy()
    return Measured(
        network=name,
        target=target,
        convolutions=graph.meta["reparameterization"].convolutions_after,
        layers=sum(layer.precision != "float32" for layer in int8.layers),
        floats={layer.name: layer.reason for layer in int8.layers if layer.precision == "float32"},
        conditioning_db=sqnr_db(reference, disturbed),
        sqnr_db=sqnr_db(reference, simulated),
        same_top1={
            engine: float((runtime(validation.numpy()).argmax(1) == classes).mean())
            for engine, runtime in engines.items()
        },
        float_products={
            engine: [item.name for item in runtime.executed() if item.is_product and not item.is_integer]
            for engine, runtime in engines.items()
        },
    )


@pytest.mark.slow
@pytest.mark.timeout(1200)  # on a busy machine the exporter takes minutes
@pytest.mark.parametrize("target", sorted(ENGINES))
@pytest.mark.parametrize("name", NETWORKS)
def test_network_in_integers(name, target, tmp_path):
    row = measure(name, target, tmp_path / "network.onnx", images(CALIBRATION + 64))
    assert row.layers
    assert not row.float_products[target]
    is_reached = row.sqnr_db >= LEAST_SQNR_DB and row.same_top1[target] >= 0.98  # one of 64
    if name in BELOW_THE_AIM and not is_reached:
        pytest.xfail(f"{row.sqnr_db:.1f} dB, {100 * row.same_top1[target]:.1f} %")
    assert is_reached


if __name__ == "__main__":
    torch.set_num_threads(1)
    target, *names = sys.argv[1:]
    photographs = images(CALIBRATION + 1000)
    for name in names or NETWORKS:
        with tempfile.TemporaryDirectory() as folder:
            print(measure(name, target, Path(folder) / "network.onnx", photographs), flush=True)
