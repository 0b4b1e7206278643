"""The block of RepVGG in its training form; `rq.reparameterize` makes one convolution of it."""

from torch import Tensor, nn


def conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """Return a convolution that keeps the size at stride 1, and batch normalization."""
    padding = kernel // 2 * dilation
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class RepBlock(nn.Module):
    """activation(bn(conv3x3(x)) + bn(conv1x1(x)) + bn(x)), the last where the shape stays.

    Args:
        inputs: channels.
        outputs: channels.
        activation: class of the activation, such as `nn.ReLU`.
        stride: of the convolutions.
        dilation: of the 3x3 convolution.
    """

    def __init__(
        self, inputs: int, outputs: int, activation: type[nn.Module], stride: int = 1, dilation: int = 1
    ) -> None:
        super().__init__()
        self.wide = conv_bn(inputs, outputs, 3, stride, dilation)
        self.narrow = conv_bn(inputs, outputs, 1, stride)
        self.identity = nn.BatchNorm2d(inputs) if inputs == outputs and stride == 1 else None
        self.activation = activation()

    def forward(self, x: Tensor) -> Tensor:
        total = self.wide(x) + self.narrow(x)
        return self.activation(total if self.identity is None else total + self.identity(x))
