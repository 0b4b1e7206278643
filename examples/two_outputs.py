"""A network with two outputs, judged by a metric of your own.

python examples/two_outputs.py
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import repquant as rq


class Detector(nn.Module):
    """Scores and boxes for each cell of a grid."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, 2, 1), nn.ReLU())
        self.scores, self.boxes = nn.Conv2d(32, 5, 1), nn.Conv2d(32, 4, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = self.body(image)
        return {"scores": self.scores(x).sigmoid(), "boxes": self.boxes(x)}


def main() -> None:
    torch.manual_seed(0)
    model = Detector().eval()
    images = [torch.randn(16, 3, 64, 64) for _ in range(4)]
    with torch.inference_mode():
        truth = [model(image)["scores"].argmax(1) for image in images]

    def accuracy(network: Callable[..., Any]) -> float:
        """Share of the cells with the right class, in percent: mAP or mIoU would stand here."""
        right = [(network(x)["scores"].argmax(1) == y).float().mean() for x, y in zip(images, truth, strict=True)]
        return 100 * float(torch.stack(right).mean())

    int8 = rq.quantize(model, images, target="onnxruntime")
    print(rq.prove(model, int8, images, evaluate=accuracy))


if __name__ == "__main__":
    main()
