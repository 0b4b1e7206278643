"""Architecture specifications: what a RepVGG network is made of, without a single tensor."""

from dataclasses import dataclass
from typing import Literal

Form = Literal["training", "deploy"]

_BASE_CHANNELS = (64, 128, 256, 512)


@dataclass(frozen=True, kw_only=True)
class BlockSpec:
    """One block: a 3x3 convolution with its parallel branches, or the single convolution that equals them."""

    in_channels: int
    out_channels: int
    stride: int
    groups: int
    squeeze_excite: bool

    @property
    def has_identity(self) -> bool:
        """Whether the input can be added to the output: same channels, same size."""
        return self.stride == 1 and self.in_channels == self.out_channels


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
    """

    name: str
    blocks: tuple[int, int, int, int]
    widths: tuple[float, float, float, float]
    groups: int = 1
    squeeze_excite: bool = False

    @property
    def stem(self) -> BlockSpec:
        """The first block: 3 image channels in, stride 2, never more than 64 channels out."""
        return BlockSpec(
            in_channels=3,
            out_channels=min(64, self._stage_channels[0]),
            stride=2,
            groups=1,
            squeeze_excite=self.squeeze_excite,
        )

    @property
    def stages(self) -> tuple[tuple[BlockSpec, ...], ...]:
        """The four stages; each begins with a block of stride 2."""
        stages = []
        in_channels = self.stem.out_channels
        layer_index = 1
        for count, out_channels in zip(self.blocks, self._stage_channels, strict=True):
            stage = []
            for position in range(count):
                stage.append(
                    BlockSpec(
                        in_channels=in_channels,
                        out_channels=out_channels,
                        stride=2 if position == 0 else 1,
                        groups=self._groups_at(layer_index),
                        squeeze_excite=self.squeeze_excite,
                    )
                )
                in_channels = out_channels
                layer_index += 1
            stages.append(tuple(stage))
        return tuple(stages)

    @property
    def features(self) -> int:
        """Channels that enter the classifier."""
        return self._stage_channels[-1]

    @property
    def _stage_channels(self) -> tuple[int, ...]:
        return tuple(int(base * width) for base, width in zip(_BASE_CHANNELS, self.widths, strict=True))

    def _groups_at(self, layer_index: int) -> int:
        return self.groups if layer_index % 2 == 0 and 2 <= layer_index <= 26 else 1
