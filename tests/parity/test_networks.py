"""Networks of timm, unchanged: every layer in integers, 25 dB, and the same classes in the runtime of the target.

On photographs where REPQUANT_DATA is set, else on smooth random images. `python tests/parity/test_networks.py` prints
the table of results/networks.md.
"""

import io
import os
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from agreement import ENGINES, WEIGHT_BITS
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))
from repquant.export.onnx import export_graph
from repquant.graph.layout import find_layout
from repquant.graph.plan import make_plan
from repquant.graph.run import run
from repquant.methods.calibrate import activation_ranges, collect_histograms
from repquant.methods.feedback import round_weights
from repquant.reparameterize import reparameterize
from repquant.targets.target import resolve_target
from third_party import timm_network

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
)
SIZE = 64
IMAGES = 96
CALIBRATION = 32


def images() -> Tensor:
    """Normalized images (96, 3, 64, 64)."""
    folder = os.environ.get("REPQUANT_DATA")
    if not folder:
        noise = torch.randn(IMAGES, 3, SIZE // 4, SIZE // 4, generator=torch.Generator().manual_seed(0))
        return F.interpolate(noise, size=SIZE, mode="bilinear")
    with zipfile.ZipFile(Path(folder) / "imagenette160.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.lower().endswith((".jpeg", ".jpg")))
        chosen = names[:: len(names) // IMAGES][:IMAGES]
        pixels = [np.asarray(_square(Image.open(io.BytesIO(archive.read(name))).convert("RGB"))) for name in chosen]
    x = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (x - mean.view(3, 1, 1)) / std.view(3, 1, 1)


def _square(image: Image.Image) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side)).resize((SIZE, SIZE))


def measure(name: str, target_name: str, path: Path, x: Tensor) -> dict[str, object]:
    """Quantize a network on the first images and compare on the others; return a row of the table."""
    graph = reparameterize(timm_network(name), x[:2])
    target = resolve_target(target_name, weight_bits=8 if target_name == "onnxruntime" else WEIGHT_BITS)
    layout = find_layout(graph, target)
    calibration, validation = [x[:CALIBRATION]], x[CALIBRATION:]
    ranges = activation_ranges("mse", collect_histograms(graph, layout, calibration), target)
    simulated = round_weights(graph, make_plan(layout, ranges, target), calibration, patches=1024).simulated()
    with torch.inference_mode():
        (reference,), (expected,) = run(graph, validation), run(simulated, validation)
    export_graph(simulated, path, target)
    row: dict[str, object] = {
        "network": name,
        "target": target_name,
        "layers": len(layout.layers),
        "floats": layout.floats,
        "sqnr_db": float(10 * torch.log10(reference.square().sum() / (reference - expected).square().sum())),
    }
    for engine_name, engine in ENGINES.items():
        runtime = engine(path, 1)
        logits = runtime(validation.numpy())
        row[f"same_top1_{engine_name}"] = float((logits.argmax(1) == expected.numpy().argmax(1)).mean())
        products = [operator for operator in runtime.executed() if operator.is_product]
        row[f"float_products_{engine_name}"] = [item.name for item in products if not item.is_integer]
    return row


@pytest.mark.slow
@pytest.mark.parametrize("target", sorted(ENGINES))
@pytest.mark.parametrize("name", NETWORKS)
def test_network_in_integers(name, target, tmp_path):
    row = measure(name, target, tmp_path / "network.onnx", images())
    assert row["layers"]
    assert row["sqnr_db"] >= 25
    assert row[f"same_top1_{target}"] >= 0.98  # one of 64
    assert not row[f"float_products_{target}"]


if __name__ == "__main__":
    torch.set_num_threads(1)
    photographs = images()
    for network in sys.argv[1:] or NETWORKS:
        for served in sorted(ENGINES):
            print(measure(network, served, Path("network.onnx"), photographs), flush=True)
