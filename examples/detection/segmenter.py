"""A segmenter like PSPNet (Zhao et al., CVPR 2017): dilated RepVGG blocks, and averages of regions beside them."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from blocks import RepBlock, conv_bn
from scenes import Scene

REGIONS = (1, 2, 4, 8)  # to a side of the image


class Pyramid(nn.Module):
    """Concatenates features with their averages over regions, each through a convolution of its own."""

    def __init__(self, channels: int, activation: type[nn.Module]) -> None:
        super().__init__()
        part = channels // len(REGIONS)
        self.parts = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(side), conv_bn(channels, part, 1), activation()) for side in REGIONS
        )

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        means = [F.interpolate(part(x), size, mode="bilinear", align_corners=False) for part in self.parts]
        return torch.cat([x, *means], 1)


class Segmenter(nn.Module):
    """Logits of background and classes for each pixel.

    Args:
        activation: class of the activation of all blocks.
        width: channels at stride 4.
        classes: to tell apart, without the background.
    """

    def __init__(self, activation: type[nn.Module] = nn.ReLU, width: int = 48, classes: int = 10) -> None:
        super().__init__()
        dilated = [RepBlock(width, width, activation, dilation=dilation) for dilation in (1, 1, 2, 2, 4)]
        self.backbone = nn.Sequential(
            RepBlock(3, width // 2, activation, stride=2), RepBlock(width // 2, width, activation, stride=2), *dilated
        )
        self.pyramid, self.mix = Pyramid(width, activation), RepBlock(2 * width, width, activation)
        self.classes = nn.Conv2d(width, 1 + classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Map (N, 3, S, S) to (N, 1 + C, S, S)."""
        logits = self.classes(self.mix(self.pyramid(self.backbone(image))))
        return F.interpolate(logits, scale_factor=4.0, mode="bilinear", align_corners=False)


def segmentation_loss(output: Tensor, scenes: list[Scene]) -> Tensor:
    """Return the cross-entropy of the pixels."""
    return F.cross_entropy(output, torch.stack([scene.mask for scene in scenes]))
