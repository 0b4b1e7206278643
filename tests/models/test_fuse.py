import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from repquant.models.blocks import RepVGGBlock
from repquant.models.fuse import equivalent_kernel, identity_kernel, pad_pointwise, scale_shift
from repquant.models.spec import BlockSpec


class Equivalent(nn.Module):
    """`equivalent_kernel` as a forward pass, so that gradients can be asked of functional_call."""

    def __init__(self, block: RepVGGBlock) -> None:
        super().__init__()
        self.block = block

    def forward(self) -> tuple[Tensor, Tensor]:
        return equivalent_kernel(self.block)


def make_block(groups: int = 1, stride: int = 1, out_channels: int = 8, **changes: object) -> RepVGGBlock:
    return RepVGGBlock(
        BlockSpec(
            in_channels=8, out_channels=out_channels, stride=stride, groups=groups, squeeze_excite=False, **changes
        )
    )


def test_scale_shift_by_hand() -> None:
    t, shift = scale_shift(
        gamma=torch.tensor([2.0, -3.0]),
        beta=torch.tensor([1.0, 0.5]),
        mean=torch.tensor([4.0, -1.0]),
        var=torch.tensor([3.0, 8.0]),
        eps=1.0,
    )
    assert t.tolist() == [1.0, -1.0]
    assert shift.tolist() == [-3.0, -0.5]


def test_equivalent_kernel_by_hand() -> None:
    block = RepVGGBlock(BlockSpec(in_channels=1, out_channels=1, stride=1, groups=1, squeeze_excite=False))
    block.conv3x3.conv.weight.data.copy_(torch.arange(9.0).view(1, 1, 3, 3))
    block.conv1x1.conv.weight.data.fill_(10.0)
    # (gamma, beta, mean, var) with eps 1: t = 2, -1, 0.5 and shifts 1, 3, -1
    statistics = ((4.0, 1.0, 0.0, 3.0), (-3.0, 1.0, 2.0, 8.0), (0.5, 0.0, 2.0, 0.0))
    branches = (block.conv3x3.bn, block.conv1x1.bn, block.identity)
    for bn, values in zip(branches, statistics, strict=True):
        bn.eps = 1.0
        for tensor, value in zip((bn.weight, bn.bias, bn.running_mean, bn.running_var), values, strict=True):
            tensor.data.fill_(value)
    kernel, bias = equivalent_kernel(block)
    assert kernel.flatten().tolist() == [0.0, 2.0, 4.0, 6.0, 8.0 - 10.0 + 0.5, 10.0, 12.0, 14.0, 16.0]
    assert bias.tolist() == [3.0]


@settings(deadline=None)
@given(groups=st.sampled_from([1, 2, 3, 4]), per_group=st.integers(1, 5), seed=st.integers(0, 99))
def test_identity_kernel_convolves_to_the_input(groups: int, per_group: int, seed: int) -> None:
    channels = groups * per_group
    x = torch.randn(1, channels, 4, 5, generator=torch.Generator().manual_seed(seed))
    kernel = identity_kernel(channels, groups)
    assert kernel.shape == (channels, per_group, 3, 3)
    assert torch.equal(F.conv2d(x, kernel, padding=1, groups=groups), x)


@settings(deadline=None)
@given(stride=st.sampled_from([1, 2]), height=st.integers(1, 6), width=st.integers(1, 6))
def test_padded_pointwise_kernel_convolves_as_the_pointwise_one(stride: int, height: int, width: int) -> None:
    generator = torch.Generator().manual_seed(height * 7 + width)
    x = torch.randn(2, 4, height, width, dtype=torch.float64, generator=generator)
    kernel = torch.randn(6, 4, 1, 1, dtype=torch.float64, generator=generator)
    padded = F.conv2d(x, pad_pointwise(kernel), stride=stride, padding=1)
    torch.testing.assert_close(padded, F.conv2d(x, kernel, stride=stride), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtype_is_kept(dtype: torch.dtype, randomize) -> None:
    kernel, bias = equivalent_kernel(randomize(make_block()).to(dtype))
    assert kernel.dtype == bias.dtype == dtype


def test_block_is_left_as_it_was(randomize) -> None:
    block = randomize(make_block()).train()
    before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    equivalent_kernel(block)
    assert block.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in block.state_dict().items())


@pytest.mark.parametrize(("groups", "stride"), [(1, 1), (4, 1), (2, 2)])
def test_gradients_agree_with_finite_differences(groups: int, stride: int, randomize) -> None:
    model = randomize(Equivalent(make_block(groups, stride))).double()
    names, parameters = zip(*model.named_parameters(), strict=True)

    def function(*values: Tensor) -> tuple[Tensor, Tensor]:
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), ())

    assert torch.autograd.gradcheck(function, parameters)


def test_gradients_through_the_equivalent_kernel_are_those_of_the_branches(randomize) -> None:
    block = randomize(make_block(groups=2)).double()
    x = torch.randn(3, 8, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    kernel, bias = equivalent_kernel(block)
    through_kernel = F.conv2d(x, kernel, bias, padding=1, groups=2).relu().square().sum()
    parameters = list(block.parameters())
    actual = torch.autograd.grad(through_kernel, parameters)
    expected = torch.autograd.grad(block(x).square().sum(), parameters)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
