"""Files for ExecuTorch: the integers in them, what XNNPACK runs, and what can't be written."""

import numpy as np
import pytest
import torch
from torch import nn

import repquant
from repquant.errors import InputError
from repquant.export.executorch import network
from repquant.export.files import export_file
from repquant.graph.capture import capture
from repquant.methods.ptq import PtqMethod
from repquant.quantize import quantize
from repquant.simulation.network import quantized_layers
from repquant.targets.executorch_file import read_executorch

pytest.importorskip("executorch.runtime", reason="pip install 'repquant[executorch]'")

from repquant.runtimes.executorch import ExecutorchRuntime

NEAREST = PtqMethod(equalization="none", rounding="nearest")


class Network(nn.Module):
    """What phones run: a stem, a depthwise convolution, a shortcut, a gate, a flip, which XNNPACK lacks, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False)
        self.gate = nn.Conv2d(16, 16, 1)
        self.grouped = nn.Conv2d(16, 8, 3, padding=1, groups=4)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = x + torch.relu(self.depthwise(x))
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        return {"größe": self.head(nn.functional.relu6(self.grouped(x.flip(1))).mean((2, 3)))}


@pytest.fixture(scope="module")
def images():
    return torch.randn(6, 3, 16, 24, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def int8(images):
    torch.manual_seed(0)
    return quantize(Network().eval(), [images], target="executorch", calibrator="max", method=NEAREST)


@pytest.fixture(scope="module")
def expected(int8, images):
    with torch.inference_mode():
        return int8(images)["größe"].numpy()


@pytest.fixture(scope="module")
def path(int8, tmp_path_factory):
    return int8.save(tmp_path_factory.mktemp("executorch") / "netz_ß.pte", inputs=("bilder_ä",))


@pytest.fixture(scope="module")
def program(path):
    return read_executorch(path)


def test_the_runtime_gives_what_the_simulation_gives_for_any_number_of_images(path, images, expected):
    runtime = ExecutorchRuntime(path, threads=1)
    assert (runtime.inputs, runtime.outputs) == ({"bilder_ä": (None, 3, 16, 24)}, ("größe",))
    for part in (slice(0, 1), slice(0, 6), slice(3, 5)):
        np.testing.assert_allclose(runtime(images[part].numpy()), expected[part], rtol=0, atol=1e-5)


def test_weights_and_biases_in_the_file_are_the_integers_of_the_simulation(int8, program):
    layers = {name: layer.integers for name, layer in quantized_layers(int8.module).items()}
    nodes = [node for node in program.nodes if node.kind in ("Conv2d", "DepthwiseConv2d", "FullyConnected")]
    assert [node.is_float for node in nodes] == [False, False, False, False, True]
    for (name, integers), node in zip(layers.items(), nodes, strict=True):
        weight, values = node.reads[1], integers.weight.numpy()
        if name != "head":
            values = values.transpose(1, 2, 3, 0) if name == "depthwise" else values.transpose(0, 2, 3, 1)
        np.testing.assert_array_equal(weight.constant, values)
        np.testing.assert_array_equal(weight.scale, integers.weight_grid.scale.numpy())
        if integers.bias is not None and name != "head":
            np.testing.assert_array_equal(node.reads[2].constant, integers.bias.numpy())
            np.testing.assert_array_equal(node.reads[2].scale, integers.bias_scale.numpy())


def test_grids_in_the_file_are_those_of_the_plan(int8, program):
    first = next(node for node in program.nodes if node.kind == "Conv2d")
    grid = int8.plan.input_grid("stem")
    assert float(first.reads[0].scale) == pytest.approx(float(grid.scale), rel=1e-4)  # as the compiler prints it
    assert first.reads[0].zero_point == int(grid.zero_point)


def test_what_runs_where_is_told(path, program):
    assert program.kernels == ("aten::flip.out",)
    assert program.delegation() == (
        f"XNNPACK runs {len(program.nodes)} of {len(program.nodes) + 1} operators; "
        "ExecuTorch's own kernels run aten::flip.out"
    )
    found = {(finding.rule.name, finding.node) for finding in repquant.check(path, "executorch")}
    assert found == {
        ("not-delegated", "aten::flip.out"),
        ("integer-operator", "Sigmoid"),
        ("integer-operator", "FullyConnected"),
        ("integer-operator", "Add"),
    }


def test_a_fixed_batch(int8, images, expected, tmp_path):
    runtime = ExecutorchRuntime(int8.save(tmp_path / "two.pte", batch=2), threads=1)
    assert runtime.inputs == {"x": (2, 3, 16, 24)}
    np.testing.assert_allclose(runtime(images[:2].numpy()), expected[:2], rtol=0, atol=1e-5)
    with pytest.raises(InputError, match=r"takes batches of exactly 2 images, and one has 3"):
        runtime(images[:3].numpy())
    with pytest.raises(InputError, match="batch 0 was given; allowed are 1 or more, and None"):
        int8.save(tmp_path / "none.pte", batch=0)
    with pytest.raises(InputError, match=r"takes and gives floats; integer ends are for \.tflite files"):
        int8.save(tmp_path / "none.pte", input_type="int8")


def test_targets_that_keep_sums_have_no_such_file(images, tmp_path):
    int8 = quantize(nn.Conv2d(3, 2, 1).eval(), [images], target="tensorrt", calibrator="max", method=NEAREST)
    with pytest.raises(InputError, match=r"\.pte was given; files for target tensorrt end in .* a \.pte file rounds"):
        int8.save(tmp_path / "x.pte")


def test_a_file_that_computes_something_else_is_not_kept(images, tmp_path, monkeypatch):
    graph = capture(nn.Conv2d(3, 2, 1).eval(), images)
    other = capture(nn.Conv2d(3, 2, 1).eval(), images)
    real = network.decomposed
    monkeypatch.setattr(network, "decomposed", lambda _: real(other))
    with pytest.raises(InputError, match="ExecuTorch computes output output otherwise than the network"):
        export_file(graph, tmp_path / "x.pte")
    assert not (tmp_path / "x.pte").exists()


def test_a_damaged_file(path, tmp_path):
    content = path.read_bytes()
    for size in (0, 7, 40, len(content) // 2, len(content) - 60):
        damaged = tmp_path / "damaged.pte"
        damaged.write_bytes(content[:size])
        for read in (read_executorch, lambda path: repquant.check(path, "executorch"), ExecutorchRuntime):
            with pytest.raises(InputError, match=r"is no \.pte file|is damaged"):
                read(damaged)
    with pytest.raises(InputError, match=r"does not exist; give a \.pte file"):
        read_executorch(tmp_path / "none.pte")
    with pytest.raises(InputError, match=r"executorch reads \.pte files, and .*x\.onnx was given"):
        repquant.load(tmp_path / "x.onnx", runtime="executorch")


def test_without_executorch_it_is_said_what_to_install(path, int8, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "executorch.exir._serialize._program", None)
    with pytest.raises(InputError, match=r"can't be imported .*; run pip install 'repquant\[executorch\]'"):
        read_executorch(path)
