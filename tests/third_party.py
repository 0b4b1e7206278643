"""Networks of other packages, with random batch normalization statistics and small inputs.

timm names torchvision in its import statements only; a stand-in holds the names while it is imported.
"""

import enum
import importlib
import importlib.machinery
import sys
import types
from collections.abc import Iterator
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
