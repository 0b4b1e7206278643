import copy

import pytest
import torch

from repquant.graph.channels import apply_scales, find_channels
from repquant.models.fuse import equivalent_kernel
from repquant.models.reparam import reparameterize
from repquant.repvgg.branches import absorb, normalize_branches, scale_branches, training_blocks
from repquant.repvgg.qat_start import captured, with_parameters_of


def scales_for(deploy):
    channels = find_channels(captured(deploy))
    return channels, torch.rand(channels.count, generator=torch.Generator().manual_seed(5)) * 3 + 0.2


def scaled_deploy(deploy, channels, scales):
    return with_parameters_of(deploy, apply_scales(captured(deploy), channels, scales))


def test_scaled_branches_are_the_scaled_kernels(branches, images):
    deploy = reparameterize(branches)
    channels, scales = scales_for(deploy)
    expected = scaled_deploy(deploy, channels, scales)
    scaled = scale_branches(branches, channels, scales)
    found = reparameterize(scaled)
    for name, parameter in expected.named_parameters():
        assert torch.allclose(found.get_parameter(name), parameter, rtol=1e-4, atol=1e-5), name
    with torch.no_grad():
        assert torch.allclose(scaled(images), branches(images), rtol=1e-3, atol=1e-4)


def test_statistics_remain_those_of_the_inputs(branches, images):
    """In training mode, where batch statistics are used, the network computes the same as before too."""
    channels, scales = scales_for(reparameterize(branches))
    scaled = scale_branches(branches, channels, scales)
    with torch.no_grad():
        before, after = copy.deepcopy(branches).train()(images), scaled.train()(images)
    assert torch.allclose(before, after, rtol=1e-2, atol=1e-3)


def test_the_3x3_branches_absorb_any_kernel(branches):
    deploy = reparameterize(branches)
    generator = torch.Generator().manual_seed(6)
    for parameter in deploy.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    before = copy.deepcopy(branches.state_dict())
    absorbed = absorb(branches, deploy)
    fused = reparameterize(absorbed)
    for name in training_blocks(branches):
        for part in ("weight", "bias"):
            expected = deploy.get_parameter(f"{name}.conv.{part}")
            assert torch.allclose(fused.get_parameter(f"{name}.conv.{part}"), expected, atol=1e-5)
    assert torch.equal(fused.head.weight, deploy.head.weight)
    assert all(torch.equal(before[key], tensor) for key, tensor in branches.state_dict().items())


def test_normalized_branches_compute_the_same_and_learn_at_the_rate_of_the_kernel(branches, images):
    branches.stem.conv1x1.bn.weight.data *= -20
    branches.stem.conv3x3.bn.weight.data[0] = 0.0
    normalized = normalize_branches(branches)
    fused, expected = reparameterize(normalized), reparameterize(branches)
    for name, parameter in expected.named_parameters():
        assert torch.allclose(fused.get_parameter(name), parameter, rtol=1e-4, atol=1e-5), name
    with torch.no_grad():
        before, after = copy.deepcopy(branches).train()(images), copy.deepcopy(normalized).train()(images)
    assert torch.allclose(before, after, rtol=1e-2, atol=1e-3)

    block = normalized.stem
    kernel, _ = equivalent_kernel(block)
    aim = torch.randn(kernel.shape, generator=torch.Generator().manual_seed(3))
    block.zero_grad()
    (kernel * aim).sum().backward()
    corner = (slice(1, None), slice(None), 0, 0)
    assert torch.allclose(block.conv3x3.conv.weight.grad[corner], aim[corner], rtol=1e-4)
    assert torch.allclose(block.conv1x1.conv.weight.grad[1:, :, 0, 0], aim[1:, :, 1, 1], rtol=1e-4)


def test_a_channel_whose_3x3_branch_is_dead_keeps_its_kernel(branches):
    branches.stem.conv3x3.bn.weight.data[0] = 0.0
    deploy = reparameterize(branches)
    changed = copy.deepcopy(deploy)
    changed.stem.conv.weight.data += 1.0
    fused = reparameterize(absorb(branches, changed))
    assert torch.allclose(fused.stem.conv.weight[0], deploy.stem.conv.weight[0])
    assert torch.allclose(fused.stem.conv.weight[1:], changed.stem.conv.weight[1:], atol=1e-5)
    assert fused.stem.conv.weight.isfinite().all()


@pytest.mark.parametrize("kind", ["qarepvgg", "repopt", "repopt-search"])
def test_other_blocks_absorb_the_scales_too(kind, images, training_network):
    model = training_network(block=kind)
    deploy = reparameterize(model)
    channels, scales = scales_for(deploy)
    expected = scaled_deploy(deploy, channels, scales)
    fused = reparameterize(absorb(scale_branches(model, channels, scales), expected))
    with torch.no_grad():
        assert torch.allclose(fused(images), deploy(images), rtol=1e-3, atol=1e-4)
