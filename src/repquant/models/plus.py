"""What RepVGGplus has besides its blocks: auxiliary classifiers, which the deploy form leaves out.

Their structure is that of the official code (https://github.com/DingXiaoH/RepVGG): behind a stage, a 3x3 convolution of
stride 2 with batch normalization and ReLU, global average pooling, and a linear layer.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from repquant.models.blocks import ConvBN
from repquant.models.spec import BlockSpec


class AuxiliaryHead(nn.Module):
    """A classifier on the output of a stage: linear(pool(relu(bn(conv3x3(x))))), the convolution with stride 2.

    Args:
        channels: of the stage.
        num_classes: logits per image.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.reduce = ConvBN(
            BlockSpec(in_channels=channels, out_channels=channels, stride=2, groups=1, squeeze_excite=False), 3
        )
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to logits (N, num_classes)."""
        logits: Tensor = self.linear(self.pool(self.relu(self.reduce(x))).flatten(1))
        return logits


class AuxiliaryHeads(nn.ModuleList):
    """One auxiliary classifier behind each of the first stages; none in deploy form.

    Args:
        channels: of the stages that have one.
        num_classes: logits per image.
    """

    def __init__(self, channels: Sequence[int] = (), num_classes: int = 1) -> None:
        super().__init__(AuxiliaryHead(count, num_classes) for count in channels)
