"""The operators between two layers, one row each: what the parity tests build their networks from.

A row computes y = after(operator(before_1(x), ...)) for images x (N, 3, 12, 12), where every `before` gives
(N, 8, 12, 12), so that the operator stands between layers that compute in integers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS = 8
IMAGE_SHAPE = (3, 12, 12)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A row.

    Attributes:
        operator: makes the module or function between the layers.
        operands: tensors that it takes.
        after: makes the layer behind it.
    """

    operator: Callable[[], Callable[..., Tensor]]
    operands: int = 1
    after: Callable[[], nn.Module] = lambda: nn.Conv2d(CHANNELS, 4, 1)


class Branch(nn.Module):
    """The network of a row."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.before = nn.ModuleList(nn.Conv2d(3, CHANNELS, 3, padding=1) for _ in range(case.operands))
        self.operator = case.operator()
        self.after = case.after()

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.operator(*(layer(x) for layer in self.before)))


class Branches(nn.Module):
    """The networks of several rows side by side; returns a dict with the output of each."""

    def __init__(self, cases: Mapping[str, Case]) -> None:
        super().__init__()
        self.branches = nn.ModuleDict({name: Branch(case) for name, case in cases.items()})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {name: branch(x) for name, branch in self.branches.items()}


class Shapes(nn.Module):
    """An operator on the tensor in another shape."""

    def __init__(self, reshape: Callable[[Tensor], Tensor], operator: Callable[..., Tensor]) -> None:
        super().__init__()
        self.reshape, self.operator = reshape, operator

    def forward(self, x: Tensor) -> Tensor:
        return self.operator(self.reshape(x))


class Gate(nn.Module):
    """Squeeze-and-excite."""

    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.pool, self.down, self.up = nn.AdaptiveAvgPool2d(1), nn.Conv2d(CHANNELS, 4, 1), nn.Conv2d(4, CHANNELS, 1)
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.up(F.relu(self.down(self.pool(x)))))


class Affine(nn.Module):
    """A layer scale: a product with a constant for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(CHANNELS, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + 0.25


def rows(x: Tensor) -> Tensor:
    """(N, C, H, W) to (N, H, C), as a sequence of rows."""
    return x.mean(3).transpose(1, 2)


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def line(x: Tensor) -> Tensor:
    return x.flatten(2)


def on_line(layer: Callable[[], nn.Module]) -> Case:
    return Case(operator=lambda: Shapes(line, layer()), after=lambda: nn.Conv1d(CHANNELS, 4, 1))


def linear_after() -> nn.Module:
    return nn.Linear(CHANNELS, 4)


def function(operator: Callable[..., Tensor], operands: int = 1, after: Callable[[], nn.Module] | None = None) -> Case:
    return Case(operator=lambda: operator, operands=operands, **({"after": after} if after else {}))


def _conv(**options: object) -> Case:
    return Case(operator=lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, **options))


_LAYERS = {
    "conv2d": _conv(padding=1),
    **{f"conv2d_{mode}": _conv(padding=1, padding_mode=mode) for mode in ("reflect", "replicate", "circular")},
    "conv2d_same": Case(operator=lambda: nn.Conv2d(CHANNELS, CHANNELS, (2, 4), padding="same")),
    "conv2d_strided": _conv(stride=2, padding=(2, 0)),
    "conv2d_dilated": _conv(dilation=2, padding=2),
    "conv2d_groups": _conv(groups=2, padding=1, bias=False),
    "conv2d_depthwise": _conv(groups=CHANNELS, padding=1),
    "conv1d": on_line(lambda: nn.Conv1d(CHANNELS, CHANNELS, 3, padding=1)),
    "conv1d_reflect": on_line(lambda: nn.Conv1d(CHANNELS, CHANNELS, 3, padding=2, padding_mode="reflect")),
    "conv1d_depthwise": on_line(lambda: nn.Conv1d(CHANNELS, CHANNELS, 5, stride=2, groups=CHANNELS)),
    "conv_transpose2d": Case(operator=lambda: nn.ConvTranspose2d(CHANNELS, CHANNELS, 2, stride=2)),
    "conv_transpose2d_groups": Case(
        operator=lambda: nn.ConvTranspose2d(CHANNELS, CHANNELS, 3, stride=2, padding=1, output_padding=1, groups=4)
    ),
    "conv_transpose1d": on_line(lambda: nn.ConvTranspose1d(CHANNELS, CHANNELS, 4, stride=2, padding=1)),
    "linear": Case(
        operator=lambda: Shapes(lambda x: x.amax((2, 3)), nn.Linear(CHANNELS, CHANNELS)), after=linear_after
    ),
    "linear_3d": Case(operator=lambda: Shapes(tokens, nn.Linear(CHANNELS, CHANNELS)), after=linear_after),
    "linear_4d": Case(
        operator=lambda: Shapes(lambda x: x.permute(0, 2, 3, 1), nn.Linear(CHANNELS, CHANNELS, bias=False)),
        after=linear_after,
    ),
    "matmul": function(lambda x, y: tokens(x) @ line(y), 2, lambda: nn.Linear(144, 4)),
    "matmul_heads": function(
        lambda x, y: tokens(x).unflatten(2, (2, 4)).transpose(1, 2) @ line(y).unflatten(1, (2, 4)),
        2,
        lambda: nn.Linear(144, 4),
    ),
    "bmm": function(lambda x, y: torch.bmm(tokens(x), line(y)), 2, lambda: nn.Linear(144, 4)),
    "functional_conv2d": Case(operator=lambda: FunctionalConvolution()),
}


class FunctionalConvolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(CHANNELS, CHANNELS, 3, 3) / 8)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.relu(x), self.kernel, padding=1)


_POINTWISE = {
    "relu": function(F.relu),
    "relu6": Case(operator=nn.ReLU6),
    "hardtanh": Case(operator=nn.Hardtanh),
    "clamp": function(lambda x: x.clamp(-0.5, 0.7)),
    "clamp_min": function(lambda x: x.clamp_min(-0.25)),
    "leaky_relu": Case(operator=lambda: nn.LeakyReLU(0.1)),
    "prelu": Case(operator=nn.PReLU),
    "prelu_channels": Case(operator=lambda: nn.PReLU(CHANNELS)),
    "silu": Case(operator=nn.SiLU),
    "hardswish": Case(operator=nn.Hardswish),
    "hardsigmoid": Case(operator=nn.Hardsigmoid),
    "sigmoid": Case(operator=nn.Sigmoid),
    "tanh": Case(operator=nn.Tanh),
    "gelu": Case(operator=nn.GELU),
    "gelu_tanh": Case(operator=lambda: nn.GELU(approximate="tanh")),
    "elu": Case(operator=nn.ELU),
    "mish": Case(operator=nn.Mish),
    "softplus": Case(operator=nn.Softplus),
    "scale": function(lambda x: x * 0.5),
    "shift": function(lambda x: x + 0.5),
    "minus": function(lambda x: 1.5 - x),
    "divide": function(lambda x: x / 3),
    "negative": function(lambda x: -x),
    "affine": Case(operator=Affine),
}

_ARITHMETIC = {
    "add": function(lambda x, y: x + y, 2),
    "add_relu": function(lambda x, y: F.relu(x + y), 2),
    "add_input": function(lambda x, y: F.relu(x) + y, 2),
    "add_self": function(lambda x: x + F.relu(x)),
    "add_three": function(lambda x, y, z: x + y + z, 3),
    "add_broadcast": function(lambda x, y: x + y.mean((2, 3), keepdim=True), 2),
    "sub": function(lambda x, y: x - y, 2),
    "mul": function(lambda x, y: x * y, 2),
    "gate_sigmoid": Case(operator=lambda: Gate(nn.Sigmoid())),
    "gate_hardsigmoid": Case(operator=lambda: Gate(nn.Hardsigmoid())),
    "glu": function(lambda x, y: x * torch.sigmoid(y), 2),
    "cat": function(lambda x, y: torch.cat([x, y], 1), 2, lambda: nn.Conv2d(2 * CHANNELS, 4, 1)),
    "cat_relu": function(lambda x, y: torch.cat([F.relu(x), y], 1), 2, lambda: nn.Conv2d(2 * CHANNELS, 4, 1)),
    "cat_pool": function(
        lambda x: torch.cat([x, F.avg_pool2d(x, 3, 1, 1)], 1), 1, lambda: nn.Conv2d(2 * CHANNELS, 4, 1)
    ),
    "stack": function(lambda x, y: torch.stack([x, y], 2).flatten(1, 2), 2, lambda: nn.Conv2d(2 * CHANNELS, 4, 1)),
}


def _half() -> nn.Module:
    return nn.Conv2d(CHANNELS // 2, 4, 1)


def shuffled(x: Tensor) -> Tensor:
    return x.unflatten(1, (2, CHANNELS // 2)).transpose(1, 2).flatten(1, 2)


_SHAPES = {
    "split": function(lambda x: torch.add(*x.split(CHANNELS // 2, 1)), 1, _half),
    "split_uneven": function(
        lambda x: x.split([2, 6], 1)[0] + x.split([4, 4], 1)[1][:, :2], 1, lambda: nn.Conv2d(2, 4, 1)
    ),
    "chunk": function(lambda x: F.relu(x).chunk(2, 1)[1], 1, _half),
    "unbind": function(lambda x: x.unflatten(1, (2, 4)).unbind(1)[0], 1, _half),
    "slice": function(lambda x: x[:, 2:6, 1:, ::2], 1, _half),
    "select": function(lambda x: x[:, :, 3], 1, lambda: nn.Conv1d(CHANNELS, 4, 1)),
    "index_select": function(lambda x: x.index_select(1, torch.tensor([3, 0, 5, 5])), 1, _half),
    "narrow": function(lambda x: x.narrow(1, 3, 4), 1, _half),
    "expand": function(lambda x: x.amax((2, 3), keepdim=True).expand(-1, -1, 6, 5)),
    "repeat": function(lambda x: x.repeat(1, 2, 1, 1), 1, lambda: nn.Conv2d(2 * CHANNELS, 4, 1)),
    "flip": function(lambda x: x.flip(3)),
    "roll": function(lambda x: torch.roll(x, (2, 3), (2, 3))),
    "pad": function(lambda x: F.pad(x, (1, 2, 3, 0))),
    "pad_reflect": function(lambda x: F.pad(F.relu(x), (1, 2, 3, 0), "reflect")),
    "pad_replicate": function(lambda x: F.pad(x, (1, 2, 3, 0), "replicate")),
    "pad_value": function(lambda x: F.pad(x, (1, 1, 1, 1), value=0.7)),
    "reshape": function(lambda x: x.reshape(-1, CHANNELS, 6, 24)),
    "permute": function(lambda x: x.permute(0, 2, 3, 1), 1, linear_after),
    "transpose": function(lambda x: x.transpose(2, 3)),
    "flatten": function(lambda x: x.flatten(1), 1, lambda: nn.Linear(CHANNELS * 144, 4)),
    "squeeze": function(lambda x: x[:, :, :1].squeeze(2).unsqueeze(3)),
    "shuffle": function(shuffled),
    "channel_shuffle": Case(operator=lambda: nn.ChannelShuffle(2)),
    "pixel_shuffle": Case(operator=lambda: nn.PixelShuffle(2), after=lambda: nn.Conv2d(CHANNELS // 4, 4, 1)),
    "pixel_unshuffle": Case(operator=lambda: nn.PixelUnshuffle(2), after=lambda: nn.Conv2d(CHANNELS * 4, 4, 1)),
}

_POOLING = {
    "max_pool": Case(operator=lambda: nn.MaxPool2d(3, 2, 1)),
    "max_pool_1d": on_line(lambda: nn.MaxPool1d(2)),
    "max_pool_relu": function(lambda x: F.max_pool2d(F.relu(x), 2)),
    "spatial_pyramid": function(
        lambda x: torch.cat([x, y := F.max_pool2d(x, 3, 1, 1), F.max_pool2d(y, 3, 1, 1)], 1),
        1,
        lambda: nn.Conv2d(3 * CHANNELS, 4, 1),
    ),
    "adaptive_max_pool": Case(operator=lambda: nn.AdaptiveMaxPool2d(1)),
    "amax": function(lambda x: x.amax((2, 3), keepdim=True)),
    "avg_pool": Case(operator=lambda: nn.AvgPool2d(2)),
    "avg_pool_padded": Case(operator=lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False)),
    "avg_pool_1d": on_line(lambda: nn.AvgPool1d(3)),
    "avg_pool_relu": function(lambda x: F.avg_pool2d(F.relu(x), 3, 1)),
    "adaptive_avg_pool": Case(operator=lambda: nn.AdaptiveAvgPool2d(1)),
    "adaptive_avg_pool_3": Case(operator=lambda: nn.AdaptiveAvgPool2d(3)),
    "adaptive_avg_pool_1d": on_line(lambda: nn.AdaptiveAvgPool1d(1)),
    "mean": function(lambda x: x.mean((2, 3)), 1, linear_after),
    "mean_keep": function(lambda x: F.relu(x).mean((2, 3), keepdim=True)),
    "nearest": Case(operator=lambda: nn.Upsample(scale_factor=2)),
    "nearest_size": function(lambda x: F.interpolate(F.relu(x), size=(17, 20))),
    "nearest_exact": function(lambda x: F.interpolate(x, scale_factor=2, mode="nearest-exact")),
    "nearest_1d": on_line(lambda: nn.Upsample(scale_factor=2)),
    "bilinear": Case(operator=lambda: nn.Upsample(scale_factor=2, mode="bilinear")),
    "bilinear_corners": Case(operator=lambda: nn.Upsample(size=(17, 20), mode="bilinear", align_corners=True)),
}

_FLOATS = {
    "softmax": function(lambda x: tokens(x).softmax(-1), 1, linear_after),
    "layer_norm": Case(operator=lambda: Shapes(tokens, nn.LayerNorm(CHANNELS)), after=linear_after),
    "group_norm": Case(operator=lambda: nn.GroupNorm(2, CHANNELS)),
    "attention": function(
        lambda x, y: torch.matmul((tokens(x) @ line(y) / 4).softmax(-1), tokens(F.relu(x))), 2, linear_after
    ),
    "sine": function(torch.sin),
    "conv3d": Case(
        operator=lambda: Shapes(lambda x: x.unflatten(1, (4, 2)), nn.Conv3d(4, 4, 1)),
        after=lambda: nn.Sequential(nn.Flatten(1, 2), nn.Conv2d(CHANNELS, 4, 1)),
    ),
}

GROUPS: Mapping[str, Mapping[str, Case]] = {
    "layers": _LAYERS,
    "pointwise": _POINTWISE,
    "arithmetic": _ARITHMETIC,
    "shapes": _SHAPES,
    "pooling": _POOLING,
    "floats": _FLOATS,
}

_QUICK: Mapping[str, tuple[str, ...]] = {
    "tensorrt": ("matmul", "add_relu", "chunk", "bilinear"),
    "onnxruntime": ("conv2d_reflect", "prelu_channels", "gate_hardsigmoid", "attention"),
    "openvino": ("conv_transpose2d_groups", "linear_3d", "add_relu", "spatial_pyramid"),
}
CORE: Mapping[str, Mapping[str, Case]] = {
    target: {name: case for cases in GROUPS.values() for name, case in cases.items() if name in names}
    for target, names in _QUICK.items()
}
"""A few rows for each target, at least one of each group, for tests that take seconds."""
