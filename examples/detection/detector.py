"""An anchor-free detector of RepVGG blocks: backbone, neck with upsampling and concatenation, decoupled heads."""

import math

import torch
from torch import Tensor, nn

from blocks import RepBlock, conv_bn

STRIDES = (8, 16)
_RARE = 0.01  # what an untrained head takes for the share of places with an object


class Backbone(nn.Module):
    """Maps (N, 3, S, S) to features of strides 8 and 16, of 2 and 4 times `width` channels."""

    def __init__(self, width: int, activation: type[nn.Module]) -> None:
        super().__init__()
        a = activation
        self.to_8 = nn.Sequential(
            RepBlock(3, width // 2, a, stride=2),
            RepBlock(width // 2, width, a, stride=2),
            RepBlock(width, width, a),
            RepBlock(width, 2 * width, a, stride=2),
            RepBlock(2 * width, 2 * width, a),
            RepBlock(2 * width, 2 * width, a),
        )
        self.to_16 = nn.Sequential(RepBlock(2 * width, 4 * width, a, stride=2), RepBlock(4 * width, 4 * width, a))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.to_8(image)
        return fine, self.to_16(fine)


class Neck(nn.Module):
    """Carries what is seen coarsely to the fine level and back; both leave with 2 times `width` channels."""

    def __init__(self, width: int, activation: type[nn.Module]) -> None:
        super().__init__()
        middle = 2 * width
        self.reduce = nn.Sequential(conv_bn(2 * middle, middle, 1), activation())
        self.up = nn.Upsample(scale_factor=2)
        self.fine = RepBlock(2 * middle, middle, activation)
        self.down = RepBlock(middle, middle, activation, stride=2)
        self.coarse = RepBlock(2 * middle, middle, activation)

    def forward(self, fine: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor]:
        coarse = self.reduce(coarse)
        fine = self.fine(torch.cat([self.up(coarse), fine], 1))
        return fine, self.coarse(torch.cat([self.down(fine), coarse], 1))


class Head(nn.Module):
    """Classes and boxes of one level, each from a block of its own."""

    def __init__(self, channels: int, classes: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.for_scores, self.for_boxes = (RepBlock(channels, channels, activation) for _ in range(2))
        self.scores, self.boxes = nn.Conv2d(channels, classes, 1), nn.Conv2d(channels, 4, 1)
        nn.init.constant_(self.scores.bias, math.log(_RARE / (1 - _RARE)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.boxes(self.for_boxes(x)), self.scores(self.for_scores(x))


class Detector(nn.Module):
    """Raw predictions for P places, those of stride 8 row by row, then those of stride 16.

    `decode` makes boxes in pixels and probabilities of them: that stays outside, as post-processing does.

    Args:
        activation: class of the activation of all blocks.
        width: channels at stride 4.
        classes: to tell apart.
    """

    def __init__(self, activation: type[nn.Module] = nn.ReLU, width: int = 24, classes: int = 10) -> None:
        super().__init__()
        self.backbone, self.neck = Backbone(width, activation), Neck(width, activation)
        self.heads = nn.ModuleList(Head(2 * width, classes, activation) for _ in STRIDES)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Map (N, 3, S, S) to `boxes` (N, 4, P), logarithms of distances in strides, and `scores` (N, C, P), logits."""
        levels = self.neck(*self.backbone(image))
        boxes, scores = zip(*(head(x) for head, x in zip(self.heads, levels, strict=True)), strict=True)
        return {
            "boxes": torch.cat([x.flatten(2) for x in boxes], 2),
            "scores": torch.cat([x.flatten(2) for x in scores], 2),
        }
