import pytest
import torch
from torch import nn

from repquant.models.blocks import ConvBN, DeployBlock, RepVGGBlock, SqueezeExcite
from repquant.models.network import make_block
from repquant.models.spec import BlockSpec


def block_spec(**changes: object) -> BlockSpec:
    defaults = {"in_channels": 16, "out_channels": 16, "stride": 1, "groups": 1, "squeeze_excite": False}
    return BlockSpec(**{**defaults, **changes})


@pytest.mark.parametrize("form", ["training", "deploy"])
@pytest.mark.parametrize(("stride", "size"), [(1, (7, 10)), (2, (4, 5))])
def test_output_size_is_the_input_size_over_the_stride_rounded_up(form, stride, size) -> None:
    block = make_block(block_spec(stride=stride, out_channels=32), form)
    assert block(torch.randn(2, 16, 7, 10)).shape == (2, 32, *size)


def test_training_block_is_relu_of_the_sum_of_its_branches(randomize) -> None:
    block = randomize(RepVGGBlock(block_spec()))
    x = torch.randn(2, 16, 6, 6)
    branches = block.conv3x3(x) + block.conv1x1(x) + block.identity(x)
    assert torch.equal(block(x), branches.clamp(min=0))
    assert (branches < 0).any()


def test_squeeze_excite_acts_before_the_relu(randomize) -> None:
    block = randomize(RepVGGBlock(block_spec(in_channels=64, out_channels=64, squeeze_excite=True)))
    x = torch.randn(2, 64, 6, 6)
    branches = block.conv3x3(x) + block.conv1x1(x) + block.identity(x)
    torch.testing.assert_close(block(x), block.se(branches).clamp(min=0))
    assert not torch.allclose(block(x), block.se(branches.clamp(min=0)))


@pytest.mark.parametrize("changes", [{"stride": 2}, {"out_channels": 32}])
def test_no_identity_branch_where_shapes_differ(changes) -> None:
    assert RepVGGBlock(block_spec(**changes)).identity is None


def test_squeeze_excite_averages_over_the_whole_of_a_non_square_image() -> None:
    se = SqueezeExcite(32)
    x = torch.randn(2, 32, 5, 9)
    pooled = x.mean(dim=(2, 3), keepdim=True)
    expected = x * se.up(se.down(pooled).relu()).sigmoid()
    torch.testing.assert_close(se(x), expected)
    assert se.down.out_channels == 2


@pytest.mark.parametrize("form", ["training", "deploy"])
def test_squeeze_excite_of_repvggplus_acts_behind_the_relu_and_has_a_quarter_of_the_channels(form, randomize) -> None:
    block = randomize(make_block(block_spec(kind="plus"), form))
    x = torch.randn(2, 16, 6, 6)
    before = block.branches(x) if form == "training" else block.conv(x)
    assert block.post_se.down.out_channels == 4
    assert torch.equal(block(x), block.post_se(before.clamp(min=0)))
    assert not torch.allclose(block(x), block.post_se(before).clamp(min=0))


def test_convolutions_of_the_branches_have_no_bias_and_align() -> None:
    three, one = ConvBN(block_spec(groups=4), 3), ConvBN(block_spec(groups=4), 1)
    assert three.conv.bias is None
    assert one.conv.bias is None
    assert three.conv.padding == (1, 1)
    assert one.conv.padding == (0, 0)
    assert three.conv.weight.shape == (16, 4, 3, 3)


def test_deploy_block_is_one_biased_convolution() -> None:
    block = DeployBlock(block_spec(groups=2))
    assert [type(module) for module in block.children()] == [nn.Conv2d, nn.Identity, nn.ReLU, nn.Identity]
    assert block.conv.bias is not None
    assert block.conv.groups == 2
