import pytest
import torch
import torch.nn.functional as F
from torch import nn

from repquant.graph.capture import capture
from repquant.graph.layout import find_layout
from repquant.graph.plan import make_plan
from repquant.methods.calibrate import activation_ranges, collect_histograms
from repquant.targets.target import resolve_target


class Gate(nn.Module):
    """Squeeze-and-excite."""

    def __init__(self, channels):
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.up(torch.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))


class Mixed(nn.Module):
    """Residuals, a gate, groups, depthwise, a transposed convolution, tokens (N, T, C), a layer without bias."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.block = nn.Conv2d(8, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 16, 3, padding=1, groups=4)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.shortcut = nn.Conv2d(8, 16, 1)
        self.gate = Gate(16)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2, groups=2)
        self.tokens = nn.Linear(8, 12)
        self.mixer = nn.Linear(12, 12)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(self.block(x) + x)
        y = self.depthwise(torch.relu(self.grouped(x)))
        x = torch.relu(y + self.shortcut(x))
        x = F.silu(self.up(self.gate(x)))
        tokens = self.tokens(x.flatten(2).transpose(1, 2))
        tokens = tokens + self.mixer(torch.relu(tokens))
        return self.head(tokens.mean(1))


class TwoInputs(nn.Module):
    """An image and a vector; a dict of logits and a map."""

    def __init__(self):
        super().__init__()
        self.image, self.vector = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(4, 6)
        self.map, self.head = nn.Conv2d(6, 2, 1), nn.Linear(6, 3)

    def forward(self, image, vector):
        x = torch.relu(self.image(image) + self.vector(vector)[:, :, None, None])
        return {"map": self.map(x), "logits": self.head(x.mean((2, 3)))}


def randomized(network, seed=0):
    """Biases and weights that are not near zero."""
    torch.manual_seed(seed)
    for parameter in network.parameters():
        spread = 0.2 if parameter.dim() == 1 else (1.5 / parameter[0].numel()) ** 0.5
        parameter.data.normal_(std=spread)
    return network.eval()


@pytest.fixture(scope="session")
def images():
    return torch.randn(8, 3, 16, 24, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def mixed(images):
    """No test may change it."""
    return capture(randomized(Mixed()), images)


@pytest.fixture(scope="session")
def pairs():
    generator = torch.Generator().manual_seed(2)
    return [(torch.randn(4, 3, 8, 8, generator=generator), torch.randn(4, 4, generator=generator)) for _ in range(2)]


@pytest.fixture(scope="session")
def two_inputs(pairs):
    """No test may change it."""
    return capture(randomized(TwoInputs()), pairs[0])


def target_of(name="onnxruntime", **options):
    return resolve_target(name, **options)


def plan_of(graph, batches, target, keep_float=()):
    layout = find_layout(graph, target, keep_float)
    ranges = activation_ranges("max", collect_histograms(graph, layout, batches), target)
    return make_plan(layout, ranges, target)


@pytest.fixture(scope="session")
def plan():
    """Make a plan: (graph, batches, target, keep_float)."""
    return plan_of
