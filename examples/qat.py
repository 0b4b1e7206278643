"""Quantization-aware training in a loop of your own: 4-bit weights, the branches trained through what is rounded.

python examples/qat.py
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

import repquant as rq


class Branches(nn.Module):
    """3x3, 1x1 and identity, each with batch normalization; one convolution when it is deployed."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(channels, channels, 3, padding=1), nn.Conv2d(channels, channels, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        branches = (self.wide(x), self.narrow(x), x)
        return torch.relu(sum(norm(branch) for norm, branch in zip(self.norms, branches, strict=True)))


def main() -> None:
    torch.manual_seed(0)
    stem, head = nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.Linear(16, 10)
    model = nn.Sequential(stem, Branches(16), Branches(16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head).eval()
    images = [torch.randn(32, 3, 32, 32) for _ in range(4)]  # your training set: labels are not needed to distill

    target = rq.resolve_target("onnxruntime", weight_bits=4)
    network = rq.prepare_qat(model, images, target=target)
    epochs = 5
    updates = epochs * len(images)
    optimizer = torch.optim.AdamW(network.parameter_groups(learning_rate=min(1.4 / updates, 0.01)))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    for epoch in range(epochs):
        total = 0.0
        for batch in images:
            loss = network.distillation_loss(network(batch), batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1}: KL to the float model {total / len(images):.2e}")

    int8 = rq.finish_qat(network)
    with TemporaryDirectory() as folder:
        print(int8.save(Path(folder) / "trained.onnx").name)
    print(rq.prove(model, int8, images, runtimes=["onnxruntime"]))


if __name__ == "__main__":
    main()
