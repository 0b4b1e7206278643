"""Networks of other packages, with random batch normalization statistics and small inputs.

timm names torchvision in its import statements only; a stand-in holds the names while it is imported.
"""

import enum
import importlib
import importlib.machinery
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_PARTS = (
    "",
    ".datasets",
    ".io",
    ".models",
    ".models.feature_extraction",
    ".ops",
    ".ops.misc",
    ".transforms",
    ".transforms.functional",
    ".transforms.v2",
    ".utils",
)


class InterpolationMode(enum.Enum):
    NEAREST = "nearest"
    NEAREST_EXACT = "nearest-exact"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"


class _AnyName(types.ModuleType):
    """A module in which every name is a class of its own."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (nn.Module,), {})


@contextmanager
def torchvision_stand_in() -> Iterator[None]:
    modules = {f"torchvision{part}": _AnyName(f"torchvision{part}") for part in _PARTS}
    for name, module in modules.items():
        module.__path__ = []
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        module.InterpolationMode = InterpolationMode
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(modules[parent], child, module)
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]


def timm_network(name: str, **options: Any) -> nn.Module:
    with torchvision_stand_in():
        timm = importlib.import_module("timm")
    torch.manual_seed(0)
    return randomized(timm.create_model(name, num_classes=10, **options))


def transformers_network(model: str, config: str, **options: Any) -> nn.Module:
    package = importlib.import_module("transformers")
    torch.manual_seed(0)
    return randomized(getattr(package, model)(getattr(package, config)(**options)))


def randomized(module: nn.Module, seed: int = 0) -> nn.Module:
    """Draw the statistics and affine parameters of all batch normalizations; return the module in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if not isinstance(getattr(part, "running_var", None), Tensor):
            continue
        part.running_mean.normal_(0, 0.1, generator=generator)
        part.running_var.uniform_(0.5, 1.5, generator=generator)
        if isinstance(getattr(part, "weight", None), nn.Parameter):
            part.weight.data.uniform_(0.5, 1.5, generator=generator)
            part.bias.data.normal_(0, 0.1, generator=generator)
    return module.eval()


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


_OF_TRANSFORMERS: dict[str, Callable[[], nn.Module]] = {
    "textnet": lambda: transformers_network("TextNetForImageClassification", "TextNetConfig", num_labels=10),
    "pplcnetv3": lambda: FinestMap(transformers_network("PPLCNetV3Backbone", "PPLCNetV3Config")),
    "rt_detr": rt_detr,
}


def network(name: str) -> nn.Module:
    """Return a network of transformers by its name above, else that of timm."""
    return _OF_TRANSFORMERS[name]() if name in _OF_TRANSFORMERS else timm_network(name)
