"""The RepVGG block in its two forms: parallel branches for training, one convolution for deployment."""

from abc import abstractmethod

from torch import Tensor, nn

from repquant.models.spec import BlockSpec


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
        channels: channels of the input.
        reduction: how many times fewer the bottleneck has.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.down = nn.Conv2d(channels, channels // reduction, 1)
        self.relu = nn.ReLU()
        self.up = nn.Conv2d(channels // reduction, channels, 1)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        factor: Tensor = self.sigmoid(self.up(self.relu(self.down(self.pool(x)))))
        return x * factor


class TrainingBlock(nn.Module):
    """A block whose branches equal one 3x3 convolution in inference mode: post_se(relu(se(branches(x)))).

    A subclass sets the modules below and defines its branches; `repquant.models.fuse.equivalent_kernel` is the algebra.
    """

    spec: BlockSpec
    se: SqueezeExcite | nn.Identity
    relu: nn.ReLU
    post_se: SqueezeExcite | nn.Identity

    @abstractmethod
    def branches(self, x: Tensor) -> Tensor:
        """Map (N, I, H, W) to (N, O, ceil(H/stride), ceil(W/stride)), an affine function in inference mode."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, I, H, W) to (N, O, ceil(H/stride), ceil(W/stride))."""
        y: Tensor = self.post_se(self.relu(self.se(self.branches(x))))
        return y


class RepVGGBlock(TrainingBlock):
    """Training form: branches bn(conv3x3(x)) + bn(conv1x1(x)) + bn(x), the last where `spec.has_identity`.

    RepVGGplus has the same block with squeeze-and-excite behind the ReLU (`spec.post_squeeze_excite`).
    """

    def __init__(self, spec: BlockSpec) -> None:
        super().__init__()
        self.spec = spec
        self.conv3x3 = ConvBN(spec, 3)
        self.conv1x1 = ConvBN(spec, 1)
        self.identity = nn.BatchNorm2d(spec.in_channels) if spec.has_identity else None
        self.se = squeeze_excite(spec)
        self.relu = nn.ReLU()
        self.post_se = post_squeeze_excite(spec)

    def branches(self, x: Tensor) -> Tensor:
        """Sum the branches."""
        total: Tensor = self.conv3x3(x) + self.conv1x1(x)
        return total if self.identity is None else total + self.identity(x)


class DeployBlock(nn.Module):
    """Deploy form: post_se(relu(se(conv3x3(x) + bias)))."""

    def __init__(self, spec: BlockSpec) -> None:
        super().__init__()
        self.spec = spec
        self.conv = nn.Conv2d(spec.in_channels, spec.out_channels, 3, stride=spec.stride, padding=1, groups=spec.groups)
        self.se = squeeze_excite(spec)
        self.relu = nn.ReLU()
        self.post_se = post_squeeze_excite(spec)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, I, H, W) to (N, O, ceil(H/stride), ceil(W/stride))."""
        y: Tensor = self.post_se(self.relu(self.se(self.conv(x))))
        return y


def squeeze_excite(spec: BlockSpec) -> SqueezeExcite | nn.Identity:
    """Return what a block does to its sum before the ReLU."""
    return SqueezeExcite(spec.out_channels) if spec.squeeze_excite else nn.Identity()


def post_squeeze_excite(spec: BlockSpec) -> SqueezeExcite | nn.Identity:
    """Return what a block does behind its ReLU; the bottleneck of RepVGGplus has a quarter of the channels."""
    return SqueezeExcite(spec.out_channels, reduction=4) if spec.post_squeeze_excite else nn.Identity()
