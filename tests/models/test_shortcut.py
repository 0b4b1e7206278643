import pytest
import torch

from repquant.models.blocks import SHORTCUT_KINDS, DeployBlock, ShortcutBlock
from repquant.models.network import build, make_block
from repquant.models.reparam import reparameterize
from repquant.models.shortcut import count_identities, split_identity
from repquant.models.spec import ArchSpec, BlockSpec
from repquant.numerics.affine import Scheme, channel_range, fake_quantize, grid_for_range
from repquant.numerics.diagonal import diagonal_center


def fused_block(groups=1, squeeze_excite=False, stride=1, diagonal=None, kind="repvgg"):
    torch.manual_seed(0)
    spec = BlockSpec(
        in_channels=32, out_channels=32, stride=stride, groups=groups, squeeze_excite=squeeze_excite, kind=kind
    )
    block = make_block(spec, "deploy").double().eval()
    if diagonal is not None:
        channels = torch.arange(32)
        block.conv.weight.data[channels, channels % (32 // groups), 1, 1] = diagonal
    return block


@pytest.mark.parametrize("kind", SHORTCUT_KINDS)
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("squeeze_excite", [False, True])
@pytest.mark.parametrize("diagonal", [None, -0.7, 0.0, 1e4], ids=["small", "negative", "zero", "huge"])
def test_the_block_computes_the_same(kind, groups, squeeze_excite, diagonal):
    block = fused_block(groups, squeeze_excite, diagonal=diagonal)
    x = torch.randn(2, 32, 6, 5, dtype=torch.float64)
    split = split_identity(torch.nn.Sequential(block), kind)[0]
    assert isinstance(split, ShortcutBlock)
    assert not split.training
    assert torch.allclose(split(x), block(x), rtol=1e-11, atol=1e-9)


@pytest.mark.parametrize("kind", SHORTCUT_KINDS)
def test_squeeze_excite_behind_the_relu_is_kept(kind):
    block = fused_block(kind="plus")
    x = torch.randn(2, 32, 6, 5, dtype=torch.float64)
    split = split_identity(torch.nn.Sequential(block), kind)[0]
    assert torch.allclose(split(x), block(x), rtol=1e-11, atol=1e-9)
    assert split.post_se is not block.post_se


def test_what_the_convolution_keeps():
    block = fused_block(groups=4, diagonal=torch.linspace(-1, 2, 32, dtype=torch.float64))
    diagonal = diagonal_center(block.conv.weight, 4)
    assert diagonal.tolist() == pytest.approx(torch.linspace(-1, 2, 32).tolist())
    depthwise = split_identity(torch.nn.Sequential(block), "depthwise")[0]
    assert diagonal_center(depthwise.conv.weight, 4).count_nonzero() == 0
    assert torch.equal(depthwise.shortcut.weight.flatten(), diagonal)
    residual = split_identity(torch.nn.Sequential(block), "residual")[0]
    assert torch.allclose(diagonal_center(residual.conv.weight, 4), diagonal - 1)
    fine = split_identity(torch.nn.Sequential(block), "coarse-fine")[0]
    step = block.conv.weight[:, :, 1, 1].abs().amax(1) / 127
    assert (fine.conv.weight[:, :, 1, 1].abs() <= step[:, None] * 0.5001).all()


def test_only_blocks_with_an_identity_branch_are_split():
    spec = ArchSpec(name="few", blocks=(1, 3, 1, 1), widths=(0.25, 0.25, 0.125, 0.125))
    model = reparameterize(build(spec, 3))
    split = split_identity(model, "depthwise")
    assert count_identities(model) == 2
    assert [type(block) for block in split.stages[1]] == [DeployBlock, ShortcutBlock, ShortcutBlock]
    assert count_identities(split) == 0
    assert count_identities(model) == 2


def test_a_network_without_identity_branches_is_copied():
    block = fused_block(stride=2)
    model = torch.nn.Sequential(block)
    split = split_identity(model, "residual")
    assert count_identities(model) == 0
    assert isinstance(split[0], DeployBlock)
    assert split[0] is not block


@pytest.mark.parametrize("bits", [4, 7])
@pytest.mark.parametrize("axis", [0, None])
def test_the_coarse_part_lies_on_the_grid_of_the_weights(bits, axis):
    block = fused_block(groups=4, diagonal=torch.linspace(0.5, 2, 32, dtype=torch.float64))
    scheme = Scheme(bits=bits, narrow=True, channel_axis=axis)
    split = split_identity(torch.nn.Sequential(block), "coarse-fine", scheme)[0]
    coarse = split.shortcut.weight.detach().float()
    grid = grid_for_range(*channel_range(coarse, scheme), scheme)
    assert torch.allclose(fake_quantize(coarse, grid), coarse, rtol=1e-6)
    step = grid.scale.reshape(-1, 1) if axis == 0 else grid.scale
    assert (split.conv.weight[:, :, 1, 1].abs() <= 0.5001 * step).all()
