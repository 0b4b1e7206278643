import pytest
import torch
from torch import nn

from repquant.methods.kernel_rounding import SHARES, round_kernels
from repquant.methods.layer_positions import kernel_rows, of_rows
from repquant.numerics.affine import Scheme
from repquant.numerics.feedback_rounding import FeedbackRounding
from repquant.simulation.integers import weight_grid
from repquant.simulation.layers import weight_scheme

NOTHING = torch.zeros(())
LAYERS = {
    "linear": lambda: nn.Linear(6, 5, bias=False),
    "grouped": lambda: nn.Conv2d(6, 4, 3, groups=2, bias=False),
    "depthwise": lambda: nn.Conv1d(6, 6, 5, groups=6, bias=False),
    "transposed": lambda: nn.ConvTranspose2d(6, 4, 2, groups=2, bias=False),
}


def grid_of(layer, bits=4, *, per_tensor=False, **options):
    scheme = weight_scheme(layer, Scheme(bits=bits, channel_axis=None if per_tensor else 0, narrow=True, **options))
    return weight_grid(layer.weight, None, torch.ones(()), scheme)


def linear(*weights):
    layer = nn.Linear(len(weights), 1, bias=False)
    layer.weight.data[:] = torch.tensor(weights)
    return layer


def random_moments(groups, columns):
    inputs = torch.randn(groups, 50, columns) @ torch.rand(groups, columns, columns)
    return inputs.mT @ inputs / 50


def squared_errors(layer, moments, integers, scale):
    """Return those of the outputs, for each scale."""
    errors = [
        kernel - rows * steps.unsqueeze(1)
        for kernel, rows, steps in zip(
            kernel_rows(layer, len(moments)), integers, of_rows(layer, scale, len(moments)), strict=True
        )
    ]
    noise = 1e-3 * moments.diagonal(dim1=1, dim2=2).mean(1)
    rows = [((e @ m) * e).sum(1) + n * e.square().sum(1) for e, m, n in zip(errors, moments, noise, strict=True)]
    if scale.dim() == 0:
        return torch.stack(rows).sum()
    if isinstance(layer, nn.ConvTranspose2d):
        return torch.stack(rows).reshape(len(rows), len(scale), -1).sum((0, 2))
    return torch.cat(rows)


@torch.no_grad()
def test_a_large_weight_that_hardly_matters_is_clipped():
    layer = linear(7.0, 0.5, -0.5, 0.4)
    grid = grid_of(layer)
    (integers,), chosen = round_kernels(layer, grid, torch.diag(torch.tensor([1e-4, 1.0, 1.0, 1.0]))[None], NOTHING)
    assert grid.scale.item() == 1.0
    assert chosen.scale.item() == pytest.approx(0.4)
    assert integers.tolist() == [[7.0, 1.0, -1.0, 1.0]]


@torch.no_grad()
def test_a_large_weight_that_matters_is_not():
    layer = linear(7.0, 0.5, -0.5, 0.4)
    grid = grid_of(layer)
    assert round_kernels(layer, grid, torch.eye(4)[None], NOTHING)[1].scale == grid.scale


@torch.no_grad()
@pytest.mark.parametrize("bits", [7, 8])
def test_eight_bits_keep_their_range(bits):
    layer = linear(7.0, 0.5, -0.5, 0.4)
    grid = grid_of(layer, bits)
    moments = torch.diag(torch.tensor([0.0, 1.0, 1.0, 1.0]))[None]
    assert (round_kernels(layer, grid, moments, NOTHING)[1].scale == grid.scale) == (bits == 8)


@torch.no_grad()
@pytest.mark.parametrize("per_tensor", [False, True])
def test_no_step_is_smaller_than_the_bias_allows(per_tensor):
    layer = linear(7.0, 0.5, -0.5, 0.4)
    moments = torch.diag(torch.tensor([1e-4, 1.0, 1.0, 1.0]))[None]
    grid = grid_of(layer, per_tensor=per_tensor)
    chosen = round_kernels(layer, grid, moments, torch.full_like(grid.scale, 0.5))[1]
    assert chosen.scale.item() == 0.5


@torch.no_grad()
def test_steps_are_those_that_files_store():
    layer = linear(7.1, 0.5, -0.5, 0.4)
    moments = torch.diag(torch.tensor([1e-4, 1.0, 1.0, 1.0]))[None]
    chosen = round_kernels(layer, grid_of(layer, scale_type="float16"), moments, NOTHING)[1]
    assert torch.equal(chosen.scale, chosen.scale.half().float())
    assert chosen.scale < 0.5


@torch.no_grad()
@pytest.mark.parametrize("per_tensor", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_no_other_share_of_the_range_loses_less(name, per_tensor):
    torch.manual_seed(0)
    layer = LAYERS[name]()
    groups = getattr(layer, "groups", 1)
    kernels = kernel_rows(layer, groups)
    moments = random_moments(groups, kernels[0].shape[1])
    for kernel in kernels:  # the first weights are large, and hardly matter
        kernel[:, 0] *= 4
    moments[:, 0] *= 0.1
    moments[:, :, 0] *= 0.1
    grid = grid_of(layer, 3, per_tensor=per_tensor)
    integers, chosen = round_kernels(layer, grid, moments, NOTHING)
    least = squared_errors(layer, moments, integers, chosen.scale)
    assert (chosen.scale < grid.scale).any()
    for share in SHARES:
        scale = grid.scale * share
        other = [
            FeedbackRounding(part).round(kernel, steps, -3, 3)
            for part, kernel, steps in zip(moments, kernels, of_rows(layer, scale, groups), strict=True)
        ]
        assert (least <= squared_errors(layer, moments, other, scale) * (1 + 1e-4)).all()
