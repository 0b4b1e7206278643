"""What broke quantizers that match module classes: layers with a forward of their own, functional calls, odd inputs."""

import pytest
import torch
import torch.nn.functional as F
from agreement import ENGINES, deploy
from operator_cases import CORE
from torch import Tensor, nn

from repquant.graph.capture import capture
from repquant.graph.layout import find_layout, resolve_keep_float
from repquant.graph.run import run
from repquant.targets.target import resolve_target


class SamePadded(nn.Conv2d):
    """Pads as TensorFlow does, more behind than in front."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 1, 0, 1)))


class WeightStandardized(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True)
        return F.conv2d(x, (self.weight - mean) * (variance + 1e-5).rsqrt() / 8, self.bias, padding=1)


class Network(nn.Module):
    """Registers its layers in another order than it calls them, and one that it never calls."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 5)
        self.never_called = nn.Conv2d(3, 8, 3)
        self.body = WeightStandardized(8, 8, 3)
        self.mixer = nn.Linear(6, 8)
        self.stem = SamePadded(3, 8, 3, stride=2)

    def forward(self, image: Tensor, *, context: Tensor) -> dict[str, Tensor]:
        """Map image (N, 3, 12, 12) and context (N, 1, 6) to tokens (N, 36, 8) and scores (N, 5)."""
        x = F.relu(self.stem(image))
        x = F.relu(self.body(x) + x)
        tokens = x.flatten(2).transpose(1, 2) + self.mixer(context)
        # A file may call a value inside `linear`, too.
        return {"tokens": tokens, "linear": self.head(tokens.mean(1))}


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(0)
    return {
        "image": torch.randn(8, 3, 12, 12, generator=generator),
        "context": torch.randn(8, 1, 6, generator=generator),
    }


@pytest.fixture(scope="module")
def module():
    torch.manual_seed(0)
    return Network().eval()


@pytest.fixture(scope="module")
def graph(module, batch):
    return capture(module, batch)


def test_the_graph_computes_what_the_module_computes(module, graph, batch):
    with torch.no_grad():
        tokens, scores = run(graph, batch)
        torch.testing.assert_close({"tokens": tokens, "linear": scores}, module(**batch))


def test_every_layer_that_is_called_computes_in_integers(graph):
    layout = find_layout(graph, resolve_target("onnxruntime"))
    assert set(layout.layers) == {"stem", "body", "mixer", "head"}
    assert not layout.floats


def test_first_and_last_follow_the_order_of_computation(graph):
    assert resolve_keep_float(graph, ["first", "last"]) == {"stem", "head"}


@pytest.mark.parametrize(
    "target", [pytest.param(name, marks=[pytest.mark.slow] if name != "onnxruntime" else []) for name in CORE]
)
def test_simulation_and_runtimes_agree(graph, batch, target, tmp_path):
    network = deploy(graph, batch, target, tmp_path / "network.onnx")
    for output in ("tokens", "linear"):
        assert network.sqnr_db(output) > 30
        for engine in ENGINES:
            agreement = network.agreement(engine, output)
            assert agreement.equal > 0.99, (engine, agreement)
            assert agreement.steps < 2, (engine, agreement)


@pytest.mark.slow
def test_a_layer_kept_in_float_is_float_in_the_file_too(graph, batch, tmp_path):
    network = deploy(graph, batch, "onnxruntime", tmp_path / "network.onnx", keep_float=["head"])
    assert set(network.layout.layers) == {"stem", "body", "mixer"}
    assert network.layout.floats == {"head": "kept in float as asked"}
    executed = {operator.name: operator for operator in network.executed["onnxruntime"] if operator.is_product}
    floats = [name for name, operator in executed.items() if not operator.is_integer]
    assert [name.split("/")[0] for name in floats] == ["head"]
    assert network.agreement("onnxruntime", "linear").steps < 2


class JoinedSigns(nn.Module):
    """Joins what a ReLU gives with values of both signs, as HGNetV2 does: the zero point of their grid is not 0."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(16, 4)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        return self.head(torch.cat([x, F.relu(self.inner(x))], 1).mean((2, 3)))


def test_a_relu_on_a_grid_with_negative_values_is_part_of_no_float_layer(batch, tmp_path):
    torch.manual_seed(1)
    images = {"image": 8 * batch["image"]}
    network = deploy(capture(JoinedSigns().eval(), images), images, "onnxruntime", tmp_path / "network.onnx")
    for engine in ENGINES:
        assert network.agreement(engine, "output").steps < 2
    assert network.agreement("onnxruntime", "output").equal == 1
    assert all(operator.is_integer for operator in network.executed["onnxruntime"] if operator.is_product)
