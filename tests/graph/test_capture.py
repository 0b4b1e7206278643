"""Capture: equal outputs, the user's calls and names, exact layers, folded normalization, and errors that help."""

import torch
import torch.nn.functional as F
from torch import fx, nn

from repquant.graph.capture import capture


class Mixed(nn.Module):
    """In-place operators on views, a computed constant, 'same' padding, reflection, two inputs, a dict of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding="same", bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2, groups=2)
        self.up_bn = nn.BatchNorm2d(8)
        self.reflected = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.drop = nn.Dropout()
        self.head = nn.Linear(8, 5)
        self.register_buffer("gain", torch.ones(8, 1, 1))

    def forward(self, x, gate=None):
        y = self.relu(self.bn(self.first(x))).clone()
        y = self.reflected(self.up_bn(self.up(y)) * (self.gain + 1))
        y[:, ::2].mul_(-1)
        y += 1
        y = F.relu(y, inplace=True).mean((2, 3)) * gate
        return {"out": self.head(self.drop(y)), "features": (y,)}


def randomized(module: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            part.running_mean.normal_(0, 0.3, generator=generator)
            part.running_var.uniform_(0.5, 2, generator=generator)
            if part.affine:
                nn.init.uniform_(part.weight, 0.5, 1.5, generator=generator)
                nn.init.normal_(part.bias, 0, 0.3, generator=generator)
    return module


def layers_of(captured: fx.GraphModule) -> dict[str, nn.Module]:
    called = [node.target for node in captured.graph.nodes if node.op == "call_module"]
    return {name: captured.get_submodule(name) for name in called}


def test_a_network_with_every_difficulty_computes_the_same_at_any_batch_size():
    module = randomized(Mixed())
    captured = capture(module, {"x": torch.randn(1, 3, 8, 8), "gate": torch.ones(1, 8)})
    assert captured.meta["repquant"].dynamic_batch
    assert module.training
    x, gate = torch.randn(3, 3, 8, 8), torch.rand(3, 8)
    module.eval()
    with torch.no_grad():
        expected, actual = module(x, gate), captured(x=x, gate=gate)
    torch.testing.assert_close(actual, expected)


def test_layers_are_exact_named_modules_and_the_normalization_is_gone():
    captured = capture(Mixed(), (torch.randn(2, 3, 8, 8), torch.ones(2, 8)))
    layers = {
        node.target: captured.get_submodule(node.target) for node in captured.graph.nodes if node.op == "call_module"
    }
    assert {name: type(layer) for name, layer in layers.items()} == {
        "first": nn.Conv2d,
        "up": nn.ConvTranspose2d,
        "reflected": nn.Conv2d,
        "head": nn.Linear,
    }
    assert layers["first"].padding == (1, 1)
    assert "batch_norm" not in captured.code
