"""Linear branches: each rule on a small network, random groups, and what must be refused."""

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import fx, nn

from repquant.graph.branches import stay_one_convolution
from repquant.graph.capture import capture
from repquant.graph.linear import merge, merge_with_branches
from third_party import randomized

aten = torch.ops.aten


class Sum(nn.Module):
    """Branches of one tensor, added up with signs, behind an activation and in front of one."""

    def __init__(self, *branches: nn.Module, signs: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.signs = signs or (1,) * len(branches)

    def forward(self, x):
        x = F.relu(x)
        total = self.signs[0] * self.branches[0](x)
        for sign, branch in zip(self.signs[1:], self.branches[1:], strict=True):
            total = total + branch(x) if sign == 1 else total - branch(x)
        return F.relu(total)


class Scale(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(shape) + 0.5)

    def forward(self, x):
        return x * self.gamma


class Shift(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.randn(channels, 1, 1))

    def forward(self, x):
        return self.beta + x


class Pad(nn.Module):
    def __init__(self, *widths: int, value: float = 0.0) -> None:
        super().__init__()
        self.widths, self.value = widths, value

    def forward(self, x):
        return F.pad(x, self.widths, value=self.value)


def conv(inputs: int, outputs: int, size: int, **options) -> nn.Conv2d:
    options.setdefault("padding", options.get("dilation", 1) * (size - 1) // 2)
    return nn.Conv2d(inputs, outputs, size, **options)


def layers_of(graph_module: fx.GraphModule) -> dict[str, nn.Conv2d]:
    called = [node.target for node in graph_module.graph.nodes if node.op == "call_module"]
    return {name: graph_module.get_submodule(name) for name in called}


def merged(module: nn.Module, shape: tuple[int, ...] = (2, 4, 9, 8)) -> fx.GraphModule:
    """Return the merged graph, after a look at that it computes what the module does."""
    module, x = randomized(module), torch.randn(shape)
    graph_module = merge(capture(module, x))
    with torch.no_grad():
        torch.testing.assert_close(graph_module(x), module(x), rtol=1e-5, atol=1e-5)
    return graph_module


def bn(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels)


SUMS = {
    "RepVGG": [nn.Sequential(conv(4, 4, 3, bias=False), bn(4)), nn.Sequential(conv(4, 4, 1, bias=False), bn(4)), bn(4)],
    "stride two": [conv(4, 6, 3, stride=2), conv(4, 6, 1, stride=2)],
    "pooling beside a stride of two": [conv(4, 4, 3, stride=2), nn.AvgPool2d(3, 2, 1)],
    "asymmetric kernels": [
        conv(4, 6, 3),
        conv(4, 6, 1),
        nn.Conv2d(4, 6, (3, 1), padding=(1, 0)),
        nn.Conv2d(4, 6, (1, 3), padding=(0, 1)),
    ],
    "one pixel in front": [nn.Sequential(conv(4, 6, 1, bias=False), conv(6, 4, 3)), conv(4, 4, 3)],
    "one pixel behind": [nn.Sequential(conv(4, 6, 3), conv(6, 4, 1)), nn.Identity()],
    "no padding behind a bias": [nn.Sequential(conv(4, 6, 1), conv(6, 4, 3, padding=0)), conv(4, 4, 3, padding=0)],
    "a pad of the bias": [
        nn.Sequential(conv(4, 6, 1), Pad(1, 1, 1, 1, value=0.5), conv(6, 4, 3, padding=0)),
        conv(4, 4, 3),
    ],
    "depthwise of two sizes": [conv(4, 4, 5, groups=4), conv(4, 4, 3, groups=4), nn.Identity()],
    "dilated": [conv(4, 4, 5, groups=4), conv(4, 4, 3, groups=4, dilation=2)],
    "dilated alike": [
        nn.Sequential(conv(4, 4, 3, dilation=2, bias=False), bn(4)),
        nn.Sequential(conv(4, 4, 1, bias=False), bn(4)),
        bn(4),
    ],
    "dilated, strided": [conv(4, 6, 3, dilation=3, stride=2), conv(4, 6, 1, stride=2)],
    "groups": [conv(4, 8, 3, groups=2), conv(4, 8, 3)],
    "average pooling": [conv(4, 4, 3), nn.AvgPool2d(3, 1, 1)],
    "chain with pooling": [conv(4, 4, 3), nn.Sequential(conv(4, 4, 1, bias=False), nn.AvgPool2d(3, 1, 1))],
    "layer scale": [nn.Identity(), nn.Sequential(conv(4, 4, 3), Scale(4, 1, 1))],
    "scale of one": [nn.Identity(), nn.Sequential(conv(4, 4, 3), Scale(1), Shift(4))],
    "a pad of its own": [nn.Sequential(Pad(1, 1, 1, 1), conv(4, 4, 3, padding=0)), nn.Identity()],
}
SUMS["a pad of the bias"][0][0].bias.data.fill_(0.5)


@pytest.mark.parametrize("name", SUMS)
def test_a_sum_of_linear_branches_is_one_convolution(name):
    graph_module = merged(Sum(*SUMS[name]))
    layers = list(layers_of(graph_module).values())
    assert len(layers) == 1
    assert type(layers[0]) is nn.Conv2d
    assert layers[0].padding_mode == "zeros"
    report = graph_module.meta["reparameterization"]
    assert len(report.groups) == report.convolutions_after == 1
    assert report.refused == ()
    assert [node.target for node in graph_module.graph.nodes if node.op == "call_function"] == [aten.relu.default] * 2


def test_a_dilated_block_keeps_its_dilation():
    """The backbones of segmenters: nine taps far apart, with the two other branches at the one in the middle."""
    module = Sum(conv(4, 4, 3, dilation=4), conv(4, 4, 1), bn(4))
    ((name, layer),) = layers_of(merged(module, (2, 4, 16, 12))).items()
    assert (layer.kernel_size, layer.dilation, layer.padding) == ((3, 3), (4, 4), (4, 4))
    graph_module, branches = merge_with_branches(capture(module, torch.randn(2, 4, 16, 12)))
    assert stay_one_convolution(branches[name], graph_module.get_submodule(name))


def test_a_difference_by_hand():
    module = Sum(conv(1, 1, 1), nn.Identity(), signs=(1, -1))
    module.branches[0].weight.data.fill_(3.0)
    module.branches[0].bias.data.fill_(0.5)
    (layer,) = layers_of(merged(module, (2, 1, 3, 3))).values()
    assert layer.weight.item() == 2
    assert layer.bias.item() == 0.5


REFUSED = {
    "a bias in front of a padding": (
        [nn.Sequential(conv(4, 4, 1), conv(4, 4, 3)), conv(4, 4, 3)],
        "a bias lies in front of a padded operator",
    ),
    "a wide window in front of a padding": (
        [nn.Sequential(conv(4, 4, 3, bias=False), conv(4, 4, 3)), conv(4, 4, 5)],
        "a window larger than one pixel lies in front",
    ),
    "pooling without its padding": ([conv(4, 4, 3), nn.AvgPool2d(3, 1, 1, count_include_pad=False)], "average pooling"),
    "more multiply-adds": ([conv(4, 4, 3, groups=4, dilation=3), conv(4, 4, 1)], "multiply-adds"),
    "dilations without a common one": ([conv(4, 4, 3, dilation=3), conv(4, 4, 3, dilation=2)], "multiply-adds"),
    "an uneven pad": ([nn.Sequential(Pad(0, 2, 0, 2), conv(4, 4, 3, padding=0)), nn.Identity()], "multiply-adds"),
    "a narrow middle": ([nn.Sequential(conv(4, 1, 1), conv(1, 4, 1)), nn.Identity()], "multiply-adds"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_one_convolution_stays_with_a_reason(name):
    branches, reason = REFUSED[name]
    module = randomized(Sum(*branches))
    captured = capture(module, torch.randn(2, 4, 9, 8))
    graph_module = merged(module)
    assert list(layers_of(graph_module)) == list(layers_of(captured))
    report = graph_module.meta["reparameterization"]
    assert report.groups == ()
    assert [reason in refusal.reason for refusal in report.refused] == [True], report.refused


def test_a_path_that_is_refused_does_not_keep_the_others_apart():
    graph_module = merged(Sum(conv(4, 4, 3), nn.Sequential(conv(4, 4, 1), conv(4, 4, 3)), conv(4, 4, 1)))
    assert sorted(layers_of(graph_module)) == ["branches.1.0", "branches.1.1", "branches.reparam"]
    (refusal,) = graph_module.meta["reparameterization"].refused
    assert refusal.layers == ("branches.reparam", "branches.1.0", "branches.1.1")


class Residual(nn.Module):
    """A linear bottleneck (MobileNetV2) and a residual block (ResNet): nothing is parallel."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.depthwise, self.project = conv(4, 8, 1), conv(8, 8, 3, groups=8), conv(8, 4, 1)
        self.one, self.two = conv(4, 4, 3), conv(4, 4, 3)

    def forward(self, x):
        x = x + self.project(F.relu6(self.depthwise(F.relu6(self.expand(x)))))
        return F.relu(x + self.two(F.relu(self.one(x))))


def test_a_bottleneck_and_a_residual_block_stay():
    captured = capture(Residual(), torch.randn(2, 4, 8, 8))
    graph_module = merge(captured)
    assert graph_module.code == captured.code
    report = graph_module.meta["reparameterization"]
    assert (report.groups, report.refused) == ((), ())


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.scale = conv(4, 4, 1), conv(4, 4, 1), Scale(4, 1, 1)

    def forward(self, x):
        return self.scale(self.two(self.one(x)))


def test_a_chain_outside_of_a_sum_stays_but_takes_its_scale():
    graph_module = merged(Chain())
    assert list(layers_of(graph_module)) == ["one", "two"]
    assert aten.mul.Tensor not in {node.target for node in graph_module.graph.nodes}


class TwoSources(nn.Module):
    """Branches of x with a term of another tensor in between, and a sum within a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow, self.inner = conv(4, 4, 3), conv(4, 4, 1), conv(4, 4, 3)
        self.gamma = nn.Parameter(torch.rand(4, 1, 1))

    def forward(self, x, y):
        x = F.relu(x)
        return self.wide(x) - y + self.gamma * (self.inner(x) + self.narrow(x))


def test_terms_of_another_tensor_stay_beside_the_merged_convolution():
    module, inputs = TwoSources(), (torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8))
    graph_module = merge(capture(module, inputs))
    torch.testing.assert_close(graph_module(*inputs), module(*inputs), rtol=1e-5, atol=1e-5)
    assert list(layers_of(graph_module)) == ["reparam"]
    assert [node.target for node in graph_module.graph.nodes if node.op == "call_function"] == [
        aten.relu.default,
        aten.sub.Tensor,
    ]


class Nested(nn.Module):
    """The RepMixer of FastViT: x + gamma * (mixer(x) - norm(x)), the mixer with branches of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Module()
        self.block.mixer = Sum(conv(4, 4, 3, groups=4), conv(4, 4, 1, groups=4), bn(4))
        self.block.norm = bn(4)
        self.block.gamma = nn.Parameter(torch.rand(4, 1, 1))

    def forward(self, x):
        x = F.relu(x)
        mixed = sum(branch(x) for branch in self.block.mixer.branches)
        return F.gelu(x + self.block.gamma * (mixed - self.block.norm(x)))


def test_sums_within_sums_are_one_depthwise_convolution_named_after_their_block():
    layers = layers_of(merged(Nested()))
    assert list(layers) == ["block.reparam"]
    assert layers["block.reparam"].groups == 4


def test_the_captured_graph_is_not_changed():
    captured = capture(Sum(conv(4, 4, 3), nn.Identity()), torch.randn(2, 4, 8, 8))
    code, weight = captured.code, captured.get_submodule("branches.0").weight.clone()
    merge(captured)
    assert captured.code == code
    assert torch.equal(captured.get_submodule("branches.0").weight, weight)


def test_the_merged_graph_takes_any_batch_and_has_values():
    graph_module = merged(Sum(conv(4, 4, 3), nn.Identity()))
    assert graph_module(torch.randn(5, 4, 9, 8)).shape == (5, 4, 9, 8)
    assert graph_module.meta["repquant"].dynamic_batch
    assert all("val" in node.meta for node in graph_module.graph.nodes if node.op != "output")


def test_bfloat16_branches_merge_in_float64():
    module = randomized(Sum(conv(4, 4, 3), conv(4, 4, 1))).bfloat16()
    (layer,) = layers_of(merge(capture(module, torch.randn(2, 4, 8, 8).bfloat16()))).values()
    wide, narrow = (branch.weight.double() for branch in module.branches)
    torch.testing.assert_close(layer.weight, (wide + F.pad(narrow, [1] * 4)).bfloat16(), rtol=0, atol=0)


@st.composite
def branches(draw) -> nn.Module:
    """A random branch of 4 channels at stride 1 that keeps the size of the map, or a chain of them."""
    parts: list[nn.Module] = []
    for _ in range(draw(st.integers(1, 2))):
        kind = draw(st.sampled_from(["conv", "conv", "bn", "pool", "scale", "identity"]))
        size, dilation = draw(st.sampled_from([1, 3, 5])), draw(st.sampled_from([1, 2]))
        if kind == "conv":
            groups, bias = draw(st.sampled_from([1, 2, 4])), draw(st.booleans())
            parts.append(conv(4, 4, size, dilation=dilation, groups=groups, bias=bias))
        elif kind == "pool":
            parts.append(nn.AvgPool2d(size, 1, size // 2, count_include_pad=draw(st.booleans())))
        else:
            parts.append({"bn": bn(4), "scale": Scale(4, 1, 1), "identity": nn.Identity()}[kind])
    return nn.Sequential(*parts)


@settings(max_examples=10, deadline=None)
@given(st.lists(branches(), min_size=2, max_size=4), st.data())
def test_random_groups_come_out_equal_and_never_dearer(parts, data):
    signs = tuple(data.draw(st.sampled_from([1, -1])) for _ in parts)
    module, x = randomized(Sum(*parts, signs=signs)), torch.randn(2, 4, 7, 6)
    captured = capture(module, x)
    graph_module = merge(captured)
    with torch.no_grad():
        torch.testing.assert_close(graph_module(x), module(x), rtol=1e-4, atol=1e-5)
    assert multiply_adds(graph_module) <= multiply_adds(captured) + 5 * 4 * 9  # of poolings and scale factors


def multiply_adds(graph_module: fx.GraphModule) -> int:
    """Return those of the convolutions for one output pixel; the maps have one size."""
    return sum(layer.weight.numel() for layer in layers_of(graph_module).values())
