"""The RepVGG block in its two forms: parallel branches for training, one convolution for deployment."""

from typing import Literal, get_args

from torch import Tensor, nn

from repquant.models.spec import BlockSpec, Form

ShortcutKind = Literal["residual", "depthwise", "coarse-fine"]
SHORTCUT_KINDS: tuple[ShortcutKind, ...] = get_args(ShortcutKind)


class ConvBN(nn.Module):
    """A convolution without bias, followed by batch normalization.

    Args:
        spec: channels, stride and groups.
        kernel_size: 3 or 1; the padding keeps the two aligned.
    """

    def __init__(self, spec: BlockSpec, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            spec.in_channels,
            spec.out_channels,
            kernel_size,
            stride=spec.stride,
            padding=kernel_size // 2,
            groups=spec.groups,
            bias=False,
        )
        self.bn = nn.BatchNorm2d(spec.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, I, H, W) to (N, O, ceil(H/stride), ceil(W/stride))."""
        y: Tensor = self.bn(self.conv(x))
        return y


class SqueezeExcite(nn.Module):
    """Rescale each channel by a factor in (0, 1) computed from all of them (Hu et al., CVPR 2018).

    Args:
        channels: channels of the input; the bottleneck has a sixteenth of them.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.down = nn.Conv2d(channels, channels // 16, 1)
        self.relu = nn.ReLU()
        self.up = nn.Conv2d(channels // 16, channels, 1)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        factor: Tensor = self.sigmoid(self.up(self.relu(self.down(self.pool(x)))))
        return x * factor


class RepVGGBlock(nn.Module):
    """Training form: relu(se(bn(conv3x3(x)) + bn(conv1x1(x)) + bn(x))), bn(x) where `spec.has_identity`."""

    def __init__(self, spec: BlockSpec) -> None:
        super().__init__()
        self.spec = spec
        self.conv3x3 = ConvBN(spec, 3)
        self.conv1x1 = ConvBN(spec, 1)
        self.identity = nn.BatchNorm2d(spec.in_channels) if spec.has_identity else None
        self.se = _squeeze_excite(spec)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, I, H, W) to (N, O, ceil(H/stride), ceil(W/stride))."""
        branches = self.conv3x3(x) + self.conv1x1(x)
        if self.identity is not None:
            branches = branches + self.identity(x)
        y: Tensor = self.relu(self.se(branches))
        return y


class DeployBlock(nn.Module):
    """Deploy form: relu(se(conv3x3(x) + bias))."""

    def __init__(self, spec: BlockSpec) -> None:
        super().__init__()
        self.spec = spec
        self.conv = nn.Conv2d(spec.in_channels, spec.out_channels, 3, stride=spec.stride, padding=1, groups=spec.groups)
        self.se = _squeeze_excite(spec)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, I, H, W) to (N, O, ceil(H/stride), ceil(W/stride))."""
        y: Tensor = self.relu(self.se(self.conv(x)))
        return y


class Term(nn.Identity):
    """A summand of a block's output, named so that targets which add integers can quantize it."""


class Residual(nn.Identity):
    """The input of a block, added to its output as it is."""


class ShortcutBlock(nn.Module):
    """Deploy form with the identity branch apart: relu(se(conv3x3(x) + bias + shortcut(x))).

    Args:
        spec: of a block with an identity branch.
        kind: "residual" adds the input itself, "depthwise" multiplies it by a factor a channel, "coarse-fine" applies
            a full 1x1 kernel.
    """

    def __init__(self, spec: BlockSpec, kind: ShortcutKind) -> None:
        super().__init__()
        assert spec.has_identity, "a block without an identity branch has nothing to set apart"
        self.spec = spec
        self.kind = kind
        channels = spec.out_channels
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=spec.groups)
        self.conv_term = Term()
        self.shortcut: Residual | nn.Conv2d
        if kind == "residual":
            self.shortcut = Residual()
        else:
            groups = channels if kind == "depthwise" else spec.groups
            self.shortcut = nn.Conv2d(channels, channels, 1, groups=groups, bias=False)
        self.shortcut_term = nn.Identity() if kind == "residual" else Term()
        self.se = _squeeze_excite(spec)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        total = self.conv_term(self.conv(x)) + self.shortcut_term(self.shortcut(x))
        y: Tensor = self.relu(self.se(total))
        return y


def make_block(spec: BlockSpec, form: Form) -> RepVGGBlock | DeployBlock:
    """Return a freshly initialized block of the given form."""
    return RepVGGBlock(spec) if form == "training" else DeployBlock(spec)


def _squeeze_excite(spec: BlockSpec) -> SqueezeExcite | nn.Identity:
    return SqueezeExcite(spec.out_channels) if spec.squeeze_excite else nn.Identity()
