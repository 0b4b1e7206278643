"""Capture: equal outputs, the user's calls and names, exact layers, folded normalization, and errors that help."""

import copy
import math
from dataclasses import dataclass
from threading import Lock

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from repquant.errors import InputError
from repquant.graph.capture import capture
from repquant.graph.interface import output_names
from repquant.graph.run import run
from third_party import randomized

aten = torch.ops.aten


def layers_of(captured: fx.GraphModule) -> dict[str, nn.Module]:
    called = [node.target for node in captured.graph.nodes if node.op == "call_module"]
    return {name: captured.get_submodule(name) for name in called}


def operators_of(captured: fx.GraphModule) -> list[object]:
    return [node.target for node in captured.graph.nodes if node.op == "call_function"]


def assert_captured_equally(module: nn.Module, *inputs: torch.Tensor) -> fx.GraphModule:
    module = randomized(module)
    captured = capture(module, inputs)
    with torch.no_grad():
        torch.testing.assert_close(captured(*inputs), module(*inputs))
    return captured


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


@pytest.fixture(scope="module")
def mixed() -> tuple[nn.Module, fx.GraphModule]:
    module = randomized(Mixed())
    return module, capture(module, {"x": torch.randn(1, 3, 8, 8), "gate": torch.ones(1, 8)})


def test_a_network_of_many_difficulties_computes_the_same_at_any_batch_size(mixed):
    module, captured = mixed
    assert captured.meta["repquant"].dynamic_batch
    x, gate = torch.randn(3, 3, 8, 8), torch.rand(3, 8)
    with torch.no_grad():
        torch.testing.assert_close(captured(x=x, gate=gate), module(x, gate))


def test_layers_are_exact_named_modules_and_the_normalization_is_gone(mixed):
    layers = layers_of(mixed[1])
    assert {name: type(layer) for name, layer in layers.items()} == {
        "first": nn.Conv2d,
        "up": nn.ConvTranspose2d,
        "reflected": nn.Conv2d,
        "head": nn.Linear,
    }
    assert layers["first"].padding == (1, 1)
    assert layers["reflected"].padding == (0, 0)
    assert not [target for target in operators_of(mixed[1]) if "batch_norm" in str(target)]


def test_every_node_has_a_value_and_a_place_in_the_users_code(mixed):
    for node in mixed[1].graph.nodes:
        assert node.op == "output" or "val" in node.meta
        assert node.op in ("placeholder", "output", "get_attr") or "nn_module_stack" in node.meta


def test_a_captured_network_is_captured_as_it_is(mixed):
    again = capture(mixed[1], torch.randn(1))
    assert again is not mixed[1]
    assert again.code == mixed[1].code
    assert again.meta["repquant"].dynamic_batch


def test_the_module_is_not_changed_and_shares_no_memory():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.PReLU(4)).train()
    before = copy.deepcopy(module.state_dict())
    captured = capture(module, torch.randn(2, 3, 8, 8))
    assert all(part.training for part in module.modules())
    assert not captured.training
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)
    for tensor in (*captured.parameters(), *captured.buffers()):
        tensor.data.fill_(7)
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)


class Noops(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.Sequential(nn.Dropout(), nn.Identity(), nn.Dropout2d())

    def forward(self, x):
        x = self.parts(x).clone().contiguous().detach().to(x.dtype).view(x.shape)
        x[:, : x.shape[1]].relu_()
        return (x + 0) * 1 / 1 - 0


def test_what_changes_nothing_goes():
    captured = assert_captured_equally(Noops(), torch.randn(2, 3, 4, 4))
    assert operators_of(captured) == [aten.relu.default]


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential()
        self.head.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return self.head.conv(F.relu(self.head.conv(x)))


def test_a_further_call_of_the_same_weights_is_a_layer_of_its_own():
    captured = assert_captured_equally(Shared(), torch.randn(2, 3, 8, 8))
    layers = layers_of(captured)
    assert list(layers) == ["head.conv", "head.conv_1"]
    assert layers["head.conv"].weight.data_ptr() != layers["head.conv_1"].weight.data_ptr()


class StandardizedSame(nn.Conv2d):
    """A subclass with a forward of its own: standardized weights, and padding that depends on the input's size."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / weight.std((1, 2, 3), keepdim=True)
        total = (math.ceil(x.shape[-1] / 2) - 1) * 2 + 3 - x.shape[-1]
        x = F.pad(x, [total // 2, total - total // 2] * 2)
        return F.conv2d(x, weight, self.bias, stride=2)


def test_a_subclass_is_what_its_forward_computes():
    captured = assert_captured_equally(nn.Sequential(StandardizedSame(3, 4, 3)), torch.randn(2, 3, 8, 8))
    assert {name: type(layer) for name, layer in layers_of(captured).items()} == {"0": nn.Conv2d}
    assert operators_of(captured) == [aten.pad.default]


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(4, 6, 3, padding=1, dilation=2, groups=2), (2, 4, 9)),
        (nn.Conv2d(4, 6, (1, 3), stride=(2, 1), padding=(0, 1), bias=False), (2, 4, 8, 8)),
        (nn.Conv2d(4, 6, 3, padding="valid"), (2, 4, 8, 8)),
        (nn.Conv2d(4, 6, (2, 4), padding="same", dilation=(1, 3)), (2, 4, 8, 8)),
        (nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (2, 4, 8, 8)),
        (nn.Conv3d(4, 6, 2, stride=2), (2, 4, 4, 4, 4)),
        (nn.ConvTranspose1d(4, 6, 3, stride=2, output_padding=1), (2, 4, 9)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, groups=2, dilation=2), (2, 4, 8, 8)),
        (nn.Linear(4, 6), (2, 5, 3, 4)),
    ],
    ids=str,
)
def test_every_kind_of_layer_is_a_module_without_normalization_behind_it(layer, shape):
    rank = layer.weight.ndim - 2
    norms = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
    parts = nn.Sequential(layer, norms[rank](6)) if rank else nn.Sequential(layer)
    captured = assert_captured_equally(parts, torch.randn(shape))
    assert [type(found) for found in layers_of(captured).values()] == [type(layer)]
    assert set(operators_of(captured)) <= {aten.pad.default}


def test_an_uneven_same_padding_is_a_pad_in_front():
    captured = assert_captured_equally(nn.Conv2d(3, 4, 2, padding="same"), torch.randn(2, 3, 8, 8))
    (pad,) = (node for node in captured.graph.nodes if node.target is aten.pad.default)
    assert pad.args[1] == [0, 1, 0, 1]
    assert pad.meta["val"].shape[1:] == (3, 9, 9)


class Products(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = (nn.Parameter(torch.randn(4, 4)) for _ in range(3))
        self.shift = nn.Parameter(torch.randn(4))

    def forward(self, x):
        return torch.addmm(self.shift, x @ self.one, self.two) + torch.mm(x, self.three.T) @ (x.T @ x)


def test_products_with_a_constant_are_linear_layers_and_others_stay():
    captured = assert_captured_equally(Products(), torch.randn(3, 4))
    layers = layers_of(captured)
    assert {name: layer.bias is None for name, layer in layers.items()} == {"one": True, "two": False, "mm": True}
    assert operators_of(captured).count(aten.matmul.default) == 2


class Normalized(nn.Module):
    """A normalization in front, one behind a layer that others use too, and two that no convolution can take."""

    def __init__(self) -> None:
        super().__init__()
        self.front, self.conv, self.behind = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, affine=False)
        self.line, self.rows = nn.BatchNorm1d(3), nn.Linear(16, 16)

    def forward(self, x):
        y = self.conv(F.relu(self.front(x)))
        y = self.behind(y) + y
        return self.line(self.rows(y.flatten(2)))


def test_a_normalization_that_no_layer_takes_is_a_depthwise_layer_or_stays():
    captured = assert_captured_equally(Normalized(), torch.randn(2, 3, 4, 4))
    layers = layers_of(captured)
    assert list(layers) == ["front", "conv", "behind", "rows"]
    assert layers["front"].groups == layers["behind"].groups == 3
    assert aten._native_batch_norm_legit_no_training.default in operators_of(captured)


class Rows(nn.Module):
    """Normalizations of rows (N, C): behind a linear layer, behind its flattened rows, and in front of two."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(4, 3, bias=False)
        self.behind, self.flat, self.front = nn.BatchNorm1d(3), nn.BatchNorm1d(3), nn.BatchNorm1d(4)

    def forward(self, x):
        rows = self.flat(self.one(x).flatten(0, 1)).reshape(len(x), -1, 3)
        pooled = self.front(F.relu(x).amax(1))
        return rows, self.behind(self.one(x.amin(1))), self.two(pooled) + self.three(pooled)


def test_normalizations_of_rows_are_folded_into_linear_layers():
    captured = assert_captured_equally(Rows(), torch.randn(5, 2, 4))
    assert sorted(layers_of(captured)) == ["one", "one_1", "three", "two"]
    assert "batch_norm" not in captured.code


class Constants(nn.Module):
    """A float constant from many steps, and an index that a float64 floor would give otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("third", torch.full((4,), 1 / 3))

    def forward(self, x):
        index = (torch.ones(4) * 0.7 / 0.1).floor().long() - 4  # 7 in float32, 6 in float64
        return x[:, index] + torch.exp(self.third).cumsum(0)


def test_constants_are_computed_once_with_the_integers_of_the_network():
    captured = assert_captured_equally(Constants(), torch.randn(2, 4))
    assert operators_of(captured) == [aten.index.Tensor, aten.add.Tensor]
    wide = torch.exp(torch.full((4,), 1 / 3).double()).cumsum(0).float()
    assert any(torch.equal(constant, wide) for constant in captured.buffers())


def test_bfloat16_stays_bfloat16():
    module = randomized(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).bfloat16()
    x = torch.randn(2, 3, 8, 8).bfloat16()
    y = capture(module, x)(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, module(x), rtol=0.05, atol=0.05)


class FixedBatch(nn.Module):
    def forward(self, x):
        return x.reshape(len(x), -1) * torch.arange(len(x)).tolist()[-1]


def test_a_batch_that_the_code_fixes_is_that_of_the_example():
    captured = assert_captured_equally(FixedBatch(), torch.randn(3, 2, 2))
    assert not captured.meta["repquant"].dynamic_batch
    assert capture(FixedBatch(), torch.randn(1, 2, 2))(torch.randn(1, 2, 2)).shape == (1, 4)


def test_another_batch_than_the_code_takes_is_refused():
    captured = capture(FixedBatch(), torch.randn(3, 2, 2))
    with pytest.raises(InputError, match=r"x is a batch of 2; the network could only be captured for batches of 3"):
        run(captured, torch.randn(2, 2, 2))
    assert run(captured, torch.randn(3, 2, 2))[0].shape == (3, 4)


class Affine(nn.Module):
    """As in HGNetV2: a scale and a bias, which training has to move away from 1 and 0."""

    def __init__(self, scale, bias):
        super().__init__()
        self.scale, self.bias = nn.Parameter(torch.tensor([scale])), nn.Parameter(torch.full((4,), bias))

    def forward(self, x):
        return (self.scale * torch.relu(x) + self.bias - self.bias) / self.scale


@pytest.mark.parametrize(("scale", "bias", "operators"), [(1.0, 0.0, 1), (0.9, 0.0, 3), (1.0, 0.1, 3)])
def test_products_with_one_and_sums_with_zero_are_left_out(scale, bias, operators):
    captured = assert_captured_equally(Affine(scale, bias), torch.randn(2, 3, 4))
    assert sum(node.op == "call_function" for node in captured.graph.nodes) == operators


class Nested(nn.Module):
    def forward(self, x):
        return {"maps": [x + 1, x + 2], "head": {"logits": x.sum(1)}, "rest": (x * 2,)}, x * 3, x * 4


def test_every_output_has_a_name_of_its_own():
    names = output_names(capture(Nested(), torch.randn(2, 3)))
    assert names == ["maps_0", "maps_1", "head_logits", "rest", "output_0", "output_1"]


class OnItsInput(nn.Module):
    def forward(self, x):
        return F.relu(x.mul_(2), inplace=True)


def test_the_callers_tensor_is_left_alone():
    captured = capture(OnItsInput(), torch.ones(2, 3))
    x = torch.ones(2, 3)
    torch.testing.assert_close(captured(x), torch.full((2, 3), 2.0))
    torch.testing.assert_close(x, torch.ones(2, 3))


class Branching(nn.Module):
    def forward(self, x):
        return torch.cond(x.mean() > 0, lambda y: y + 1, lambda y: y - 1, (x,))


def test_control_flow_operators_are_kept():
    assert_captured_equally(Branching(), torch.ones(2, 3))


class DependsOnValues(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x
        return -x


class LeavesTorch(nn.Module):
    def forward(self, x):
        return torch.from_numpy(x.numpy() + 1)


class Stateful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return x + self.calls


@dataclass
class Output:
    features: torch.Tensor


class ReturnsAClass(nn.Module):
    def forward(self, x):
        return Output(x + 1)


class HoldsALock(nn.Linear):
    def __init__(self) -> None:
        super().__init__(3, 3)
        self.lock = Lock()


@pytest.mark.parametrize(
    ("module", "example", "parts"),
    [
        (DependsOnValues(), torch.ones(2, 3), ["test_capture.py:", "if x.sum() > 0:", "torch.where"]),
        (LeavesTorch(), torch.ones(2, 3), ["test_capture.py:", "x.numpy() + 1", "tensor operations"]),
        (Stateful(), torch.ones(2, 3), ["Stateful changes its buffers", "calls", "output"]),
        (ReturnsAClass(), torch.ones(2, 3), ["Output", "register_dataclass"]),
        (HoldsALock(), torch.ones(2, 3), ["HoldsALock can't be copied", "lock"]),
        (nn.Conv2d(3, 4, 3), torch.ones(2, 5, 8, 8), ["can't be called with the example", "5 channels"]),
        (nn.Linear(3, 4), (torch.ones(2, 3), 1), ["Linear.forward(input", "too many positional arguments"]),
        (nn.Linear(3, 4), {"images": torch.ones(2, 3)}, ["argument: 'input'", "dict of the keyword inputs"]),
        (nn.Linear(3, 4), [torch.ones(2, 3)], ["list", "tuple of the positional inputs"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_captured_names_the_line_and_what_to_do(module, example, parts, capfd):
    with pytest.raises(InputError) as raised:
        capture(module, example)
    assert all(part in str(raised.value) for part in parts), str(raised.value)
    assert capfd.readouterr() == ("", "")
