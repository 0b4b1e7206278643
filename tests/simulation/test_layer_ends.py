"""Where only one grid reads a layer, its sum is rescaled once, as in ONNX Runtime."""

import numpy as np
import torch
from torch import nn

from repquant.export.onnx import export_graph
from repquant.graph.capture import capture
from repquant.graph.layout import find_layout
from repquant.graph.plan import make_plan
from repquant.runtimes.onnxruntime import OnnxRuntime
from repquant.simulation.network import quantized_layers, simulate
from repquant.targets.target import resolve_target


class Ends(nn.Module):
    """Layers that are read through a clip, by two readers, by a view, in float too, and by an output."""

    def __init__(self):
        super().__init__()
        self.clipped, self.twice = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.left, self.right = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)
        self.floating, self.viewed = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 2, 1)
        self.rows = nn.Linear(2 * 16 * 16, 4)

    def forward(self, x):
        x = torch.relu(self.twice(torch.relu(self.clipped(x))))
        y = self.floating(x)
        return self.rows(self.viewed(y).flatten(1)), torch.exp(y), self.left(x) + self.right(x)


def test_layers_end_where_all_that_read_them_share_a_grid():
    graph = capture(Ends().eval(), torch.rand(2, 3, 16, 16))
    target = resolve_target("tensorrt")
    layout = find_layout(graph, target)
    plan = make_plan(layout, dict.fromkeys(layout.tensors, (-1.7, 1.7)), target)
    ended = {name: layer.end for name, layer in quantized_layers(simulate(graph, plan)).items()}
    step = float(np.float32(1.7 / 127))
    # Of `left` and `right`, the later one keeps its sum for the addition; `exp` reads `floating` as it is.
    expected = {"clipped": step, "twice": step, "left": step, "viewed": step}
    assert ended == dict.fromkeys(ended) | expected
    assert all(layer.end is None for layer in quantized_layers(simulate(graph, plan, ends=False)).values())


def test_the_sum_is_rescaled_once(tmp_path):
    """13 steps of 0.1 are 6.5 of 0.2, which is even-rounded to 6; 13 x 0.1 first, and 1 / 0.2 then, gives 7."""
    layers = nn.Sequential(nn.Conv2d(2, 1, 1, bias=False), nn.Conv2d(1, 1, 1, bias=False)).eval()
    layers[0].weight.data = torch.tensor([12.7, 0.1]).reshape(1, 2, 1, 1)
    layers[1].weight.data.fill_(1.0)
    sums = torch.arange(-127.0, 128)
    image = torch.stack([torch.zeros_like(sums), sums]).reshape(1, 2, 1, 255)
    graph, target = capture(layers, image), resolve_target("tensorrt")
    layout = find_layout(graph, target)
    first, second = layout.tensors
    simulated = simulate(graph, make_plan(layout, {first: (-127.0, 127.0), second: (-25.4, 25.4)}, target))
    found = simulated.get_submodule("0")(image).flatten() / np.float32(0.2)
    assert found.round().tolist() == [float(np.round(value / 2)) for value in range(-127, 128)]
    twice = (sums * np.float32(0.1) * (1 / np.float32(0.2))).round()
    assert int(twice[sums == 13]) == 7
    export_graph(simulated, tmp_path / "once.onnx", target)
    served = OnnxRuntime(tmp_path / "once.onnx", threads=1)(image.numpy())
    np.testing.assert_allclose(served, simulated(image).numpy(), rtol=1e-6)
