"""Architecture specifications: what a RepVGG network is made of, without a single tensor."""

from dataclasses import dataclass
from typing import Literal

Form = Literal["training", "deploy"]
BlockKind = Literal["repvgg", "qarepvgg", "repopt", "repopt-search", "plus"]

_BASE_CHANNELS = (64, 128, 256, 512)


@dataclass(frozen=True, kw_only=True)
class BlockSpec:
    """One block: a 3x3 convolution with its parallel branches, or the single convolution that equals them.

    Attributes:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: of the convolutions.
        groups: of the convolutions.
        squeeze_excite: whether channels are rescaled before the ReLU.
        kind: which branches the training form has, and where its batch normalization stands.
        position: of the block in its stage, from 0; the stem has 0.
    """

    in_channels: int
    out_channels: int
    stride: int
    groups: int
    squeeze_excite: bool
    kind: BlockKind = "repvgg"
    position: int = 0

    @property
    def has_identity(self) -> bool:
        """Whether the input can be added to the output: same channels, same size."""
        return self.stride == 1 and self.in_channels == self.out_channels

    @property
    def post_squeeze_excite(self) -> bool:
        """Whether channels are rescaled after the ReLU, as RepVGGplus does."""
        return self.kind == "plus"


@dataclass(frozen=True, kw_only=True)
class ArchSpec:
    """A RepVGG architecture (Ding et al., "RepVGG: Making VGG-style ConvNets Great Again", CVPR 2021).

    Attributes:
        name: what the command line calls it.
        blocks: blocks in each of the four stages after the stem.
        widths: factors on the base channels 64, 128, 256, 512 of the four stages.
        groups: groups of the convolutions at the even layer indices 2..26, where the first block after the
            stem has index 1.
        squeeze_excite: whether each block, the stem included, rescales its channels before the ReLU.
        block: kind of all blocks. "plus" also rescales channels after each ReLU, splits the third stage in two
            halves, and has an auxiliary classifier behind each of the first three stages while it trains.
    """

    name: str
    blocks: tuple[int, int, int, int]
    widths: tuple[float, float, float, float]
    groups: int = 1
    squeeze_excite: bool = False
    block: BlockKind = "repvgg"

    @property
    def stem(self) -> BlockSpec:
        """The first block: 3 image channels in, stride 2, never more than 64 channels out."""
        return self._block(3, min(64, self._stage_channels[0]), stride=2, groups=1, position=0)

    @property
    def stages(self) -> tuple[tuple[BlockSpec, ...], ...]:
        """The four stages, each of which begins with a block of stride 2; RepVGGplus has the third in two halves."""
        stages = []
        in_channels = self.stem.out_channels
        layer_index = 1
        for count, out_channels in zip(self.blocks, self._stage_channels, strict=True):
            stage = []
            for position in range(count):
                stride = 2 if position == 0 else 1
                groups = self._groups_at(layer_index)
                stage.append(self._block(in_channels, out_channels, stride, groups, position))
                in_channels = out_channels
                layer_index += 1
            stages.append(tuple(stage))
        if self.block == "plus":
            half = len(stages[2]) // 2
            stages[2:3] = [stages[2][:half], stages[2][half:]]
        return tuple(stages)

    @property
    def features(self) -> int:
        """Channels that enter the classifier."""
        return self._stage_channels[-1]

    @property
    def _stage_channels(self) -> tuple[int, ...]:
        return tuple(int(base * width) for base, width in zip(_BASE_CHANNELS, self.widths, strict=True))

    def _block(self, in_channels: int, out_channels: int, stride: int, groups: int, position: int) -> BlockSpec:
        return BlockSpec(
            in_channels=in_channels,
            out_channels=out_channels,
            stride=stride,
            groups=groups,
            squeeze_excite=self.squeeze_excite,
            kind=self.block,
            position=position,
        )

    def _groups_at(self, layer_index: int) -> int:
        return self.groups if layer_index % 2 == 0 and 2 <= layer_index <= 26 else 1
