import pytest
import torch
import torch.nn.functional as F
from torch import nn

from repquant.models.fuse import equivalent_kernel
from repquant.models.qarep import QARepVGGBlock
from repquant.models.reparam import reparameterize
from repquant.models.spec import BlockSpec


def make_block(**changes: object) -> QARepVGGBlock:
    defaults = {"in_channels": 8, "out_channels": 8, "stride": 1, "groups": 1, "squeeze_excite": False}
    return QARepVGGBlock(BlockSpec(**{**defaults, "kind": "qarepvgg", **changes}))


def test_equivalent_kernel_by_hand() -> None:
    block = make_block(in_channels=1, out_channels=1)
    block.conv3x3.conv.weight.data.copy_(torch.arange(9.0).view(1, 1, 3, 3))
    block.pointwise.weight.data.fill_(10.0)
    # (gamma, beta, mean, var) with eps 1: t3 = 2, shift3 = 1; t = -1, shift = 3
    for bn, values in ((block.conv3x3.bn, (4.0, 1.0, 0.0, 3.0)), (block.bn, (-3.0, 1.0, 2.0, 8.0))):
        bn.eps = 1.0
        for tensor, value in zip((bn.weight, bn.bias, bn.running_mean, bn.running_var), values, strict=True):
            tensor.data.fill_(value)
    kernel, bias = equivalent_kernel(block)
    assert kernel.flatten().tolist() == [0.0, -2.0, -4.0, -6.0, -(8.0 + 10.0 + 1.0), -10.0, -12.0, -14.0, -16.0]
    assert bias.tolist() == [-1.0 + 3.0]


def test_block_is_one_normalization_of_the_sum(randomize) -> None:
    block = randomize(make_block())
    x = torch.randn(2, 8, 6, 6)
    total = block.conv3x3(x) + F.conv2d(x, block.pointwise.weight) + x
    assert torch.equal(block(x), block.bn(total).clamp(min=0))
    assert block.pointwise.bias is None


@pytest.mark.parametrize("changes", [{"stride": 2}, {"out_channels": 16}])
def test_the_input_is_added_only_where_shapes_agree(changes, randomize) -> None:
    block = randomize(make_block(**changes))
    x = torch.randn(2, 8, 6, 6)
    assert torch.equal(block(x), block.bn(block.conv3x3(x) + block.pointwise(x)).clamp(min=0))


def test_squeeze_excite_acts_behind_the_batch_normalization_in_both_forms(randomize) -> None:
    block = randomize(make_block(in_channels=32, out_channels=32, squeeze_excite=True)).double()
    x = torch.randn(2, 32, 6, 6, dtype=torch.float64)
    total = block.conv3x3(x) + block.pointwise(x) + x
    deploy = reparameterize(block)
    torch.testing.assert_close(block(x), block.se(block.bn(total)).relu())
    torch.testing.assert_close(deploy(x), block(x), rtol=0, atol=1e-9)
    assert not torch.allclose(block(x), block.bn(block.se(total)).relu()), "the public code's training form"


@pytest.mark.parametrize("groups", [1, 4])
def test_gradients_through_the_equivalent_kernel_are_those_of_the_branches(groups, randomize) -> None:
    block = randomize(make_block(groups=groups)).double()
    x = torch.randn(3, 8, 5, 6, dtype=torch.float64)
    kernel, bias = equivalent_kernel(block)
    through_kernel = F.conv2d(x, kernel, bias, padding=1, groups=groups).relu().square().sum()
    parameters = list(block.parameters())
    actual = torch.autograd.grad(through_kernel, parameters)
    expected = torch.autograd.grad(block(x).square().sum(), parameters)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_a_block_without_registered_algebra_says_so() -> None:
    with pytest.raises(NotImplementedError, match="Identity has no registered equivalent kernel"):
        equivalent_kernel(nn.Identity())
