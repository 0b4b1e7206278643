import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from repquant.errors import InputError
from repquant.models.blocks import RepVGGBlock
from repquant.models.network import build
from repquant.models.spec import ArchSpec, BlockSpec
from repquant.train.losses import block_custom_l2, classification_loss, custom_l2


def one_channel_block(gamma3: float = 6.0, gamma1: float = 4.0) -> RepVGGBlock:
    """W3 is 1 with 2 in the center, W1 is 1; with the default gammas t3 = 3 and t1 = 4."""
    block = RepVGGBlock(BlockSpec(in_channels=1, out_channels=1, stride=2, groups=1, squeeze_excite=False))
    for branch, gamma, variance in ((block.conv3x3, gamma3, 4.0), (block.conv1x1, gamma1, 1.0)):
        branch.bn.eps = 0.0
        branch.bn.running_var.fill_(variance)
        branch.bn.weight.data.fill_(gamma)
        branch.conv.weight.data.fill_(1.0)
    block.conv3x3.conv.weight.data[:, :, 1, 1] = 2.0
    return block


def test_custom_l2_by_hand():
    # 12 - 4 + (3 * 2 + 4 * 1)^2 / (9 + 16)
    assert block_custom_l2(one_channel_block()).item() == pytest.approx(12.0)


def test_gradients_by_hand_and_none_into_the_scales():
    block = one_channel_block()
    block_custom_l2(block).backward()
    expected = torch.full((3, 3), 2.0)
    expected[1, 1] = 2 * 10 * 3 / 25
    torch.testing.assert_close(block.conv3x3.conv.weight.grad[0, 0], expected)
    assert block.conv1x1.conv.weight.grad.item() == pytest.approx(2 * 10 * 4 / 25)
    for branch in (block.conv3x3, block.conv1x1):
        assert branch.bn.weight.grad is None


def test_without_both_gammas_the_center_contributes_nothing():
    block = one_channel_block(gamma3=0.0, gamma1=0.0)
    loss = block_custom_l2(block)
    loss.backward()
    assert loss.item() == 8.0
    assert block.conv3x3.conv.weight.grad[0, 0, 1, 1] == 0
    assert block.conv1x1.conv.weight.grad.item() == 0


@given(st.floats(1e-30, 1e30))
def test_only_the_ratio_of_the_gammas_counts(factor):
    loss = block_custom_l2(one_channel_block(gamma3=6.0 * factor, gamma1=4.0 * factor))
    assert loss.item() == pytest.approx(12.0, rel=1e-5)


@pytest.mark.parametrize("groups", [1, 2])
def test_the_definition_with_identity_and_groups(groups):
    block = RepVGGBlock(BlockSpec(in_channels=6, out_channels=6, stride=1, groups=groups, squeeze_excite=False))
    generator = torch.Generator().manual_seed(groups)
    scales = []
    for branch in (block.conv3x3, block.conv1x1):
        branch.bn.running_var.uniform_(0.2, 2, generator=generator)
        branch.bn.weight.data.uniform_(-1.5, 1.5, generator=generator)
        scales.append((branch.bn.weight / (branch.bn.running_var + branch.bn.eps).sqrt()).view(-1, 1, 1, 1))
    t3, t1 = scales
    k3, k1 = block.conv3x3.conv.weight, block.conv1x1.conv.weight
    center = k3[:, :, 1:2, 1:2]
    expected = (k3**2).sum() - (center**2).sum() + ((center * t3 + k1 * t1) ** 2 / (t3**2 + t1**2)).sum()
    torch.testing.assert_close(block_custom_l2(block), expected)


def test_a_network_sums_its_blocks():
    model = build(ArchSpec(name="test", blocks=(1, 1, 1, 1), widths=(0.125,) * 4), 2)
    blocks = [module for module in model.modules() if isinstance(module, RepVGGBlock)]
    assert len(blocks) == 5
    torch.testing.assert_close(custom_l2(model), sum(block_custom_l2(block) for block in blocks))


def test_a_network_without_branches_is_refused():
    model = build(ArchSpec(name="test", blocks=(1, 1, 1, 1), widths=(0.125,) * 4), 2, form="deploy")
    with pytest.raises(InputError, match="needs RepVGG blocks in training form, and RepVGG has none"):
        custom_l2(model)


def smoothed(logits: Tensor, labels: Tensor, share: float) -> Tensor:
    """Cross-entropy with the target written out."""
    classes = logits.shape[1]
    target = (1 - share) * F.one_hot(labels, classes) + share / classes
    return -(target * logits.log_softmax(dim=1)).sum(dim=1).mean()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_label_smoothing_by_its_definition(share):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 5, generator=generator)
    labels = torch.randint(5, (7,), generator=generator)
    torch.testing.assert_close(classification_loss(logits, labels, share), smoothed(logits, labels, share))


def test_the_loss_is_float32_under_autocast():
    logits = torch.randn(3, 4).bfloat16()
    assert classification_loss(logits, torch.zeros(3, dtype=torch.int64), 0.1).dtype == torch.float32
