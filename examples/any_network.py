"""A network of your own, with residuals and squeeze-and-excite, without a line about quantization in it.

python examples/any_network.py
"""

import torch
from torch import Tensor, nn

import repquant as rq


class Block(nn.Module):
    """A residual block with a gate for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.down, self.up = nn.Conv2d(channels, channels // 4, 1), nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        gate = torch.sigmoid(self.up(torch.relu(self.down(y.mean((2, 3), keepdim=True)))))
        return torch.relu(x + y * gate)


def main() -> None:
    torch.manual_seed(0)
    stem = nn.Sequential(nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.SiLU())
    model = nn.Sequential(stem, Block(32), Block(32), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)).eval()
    images = [torch.randn(32, 3, 64, 64) for _ in range(4)]

    int8 = rq.quantize(model, images, target="openvino", keep_float=["first"])
    for layer in int8.layers:
        print(f"{layer.name:10} {layer.precision:8} {layer.reason}")
    print(rq.prove(model, int8, images, runtimes=["openvino"]))


if __name__ == "__main__":
    main()
