import pytest
import torch
import torch.nn.functional as F
from torch import nn

from repquant.graph.capture import capture
from repquant.graph.layout import find_layout
from repquant.graph.plan import make_plan
from repquant.methods.calibrate import activation_ranges, collect_histograms


class Mixed(nn.Module):
    """Normalized convolutions, a residual, a gate, grouped transposed convolution, attention, two outputs."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Conv2d(8, 8, 3, padding=1)
        self.gate = nn.Conv2d(8, 8, 1)
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2, groups=2)
        self.row = nn.Conv1d(8, 6, 3)
        self.map = nn.Conv2d(8, 2, 1, bias=False)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        x = self.stem(x)
        x = F.relu(self.body(x) + x)
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        rows = self.row(F.silu(x).mean(3))
        scores = torch.softmax(rows.transpose(1, 2) @ rows, -1)
        tokens = scores @ rows.transpose(1, 2)
        return {"logits": self.head(tokens.mean(1)), "map": self.map(self.up(x))}


@pytest.fixture(scope="session")
def images():
    return torch.randn(8, 3, 10, 10, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def mixed(images):
    """The network, captured."""
    torch.manual_seed(0)
    module = Mixed().eval()
    module.stem[1].running_mean.normal_(std=0.1)
    module.stem[1].running_var.uniform_(0.5, 2.0)
    return capture(module, images)


@pytest.fixture
def plan_of(images):
    """Make the plan of a captured network for a target."""

    def plan(graph, target, keep_float=()):
        layout = find_layout(graph, target, keep_float)
        return make_plan(layout, activation_ranges("max", collect_histograms(graph, layout, [images]), target), target)

    return plan
