import math

import pytest
import torch
import torch.nn.functional as F

from repquant.errors import InputError
from repquant.models.checkpoints import load_model, save_model
from repquant.models.fuse import equivalent_kernel
from repquant.models.network import build
from repquant.models.reparam import reparameterize
from repquant.models.repopt import GradientMultiplier, gradient_multipliers, target_from_search
from repquant.models.repopt_blocks import RepOptBlock, RepOptSearchBlock, initial_scale, scaled_kernel
from repquant.models.spec import ArchSpec, BlockSpec

SEARCH = "RepOpt-VGG-tiny-search"


def block_spec(**changes: object) -> BlockSpec:
    defaults = {"in_channels": 8, "out_channels": 8, "stride": 1, "groups": 1, "squeeze_excite": False}
    return BlockSpec(**{**defaults, **changes})


def trained_search(num_classes: int = 4):
    """Stands for a trained hyper-search: scales that are nobody's initial values."""
    search = build(SEARCH, num_classes)
    for name, parameter in search.named_parameters():
        if "scale" in name:
            parameter.data.uniform_(0.2, 2.0)
    return search


def test_scaled_kernel_by_hand() -> None:
    w3 = torch.arange(18.0).view(2, 1, 3, 3).repeat(1, 2, 1, 1)
    w1 = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(2, 2, 1, 1)
    kernel = scaled_kernel(w3, w1, torch.tensor([2.0, -1.0]), torch.tensor([10.0, 5.0]), torch.tensor([100.0, 7.0]))
    assert kernel[:, :, 1, 1].tolist() == [[8.0 + 10.0 + 100.0, 8.0 + 20.0], [-13.0 + 15.0, -13.0 + 20.0 + 7.0]]
    assert torch.equal(kernel[0, 1, 0], torch.tensor([0.0, 2.0, 4.0]))


@pytest.mark.parametrize(("position", "scale"), [(0, 1.0), (1, math.sqrt(2)), (2, 1.0), (8, 0.5)])
def test_initial_scales_of_a_stage(position: int, scale: float) -> None:
    assert initial_scale(position) == pytest.approx(scale)
    search = RepOptSearchBlock(block_spec(position=position))
    for tensor in (search.scale3x3.weight, search.scale1x1.weight):
        torch.testing.assert_close(tensor.detach(), torch.full((8,), scale))
    assert torch.equal(search.scale_identity.weight.detach(), torch.ones(8))


@pytest.mark.parametrize("changes", [{}, {"stride": 2}, {"out_channels": 16}])
def test_search_block_is_one_normalization_of_the_scaled_sum(changes, randomize) -> None:
    block = randomize(RepOptSearchBlock(block_spec(**changes)))
    for scale in (block.scale3x3, block.scale1x1):
        scale.weight.data.uniform_(-1, 1)
    x = torch.randn(2, 8, 6, 6)
    total = block.conv3x3(x) * block.scale3x3.weight[:, None, None]
    total = total + block.conv1x1(x) * block.scale1x1.weight[:, None, None]
    if not changes:
        block.scale_identity.weight.data.uniform_(-1, 1)
        total = total + x * block.scale_identity.weight[:, None, None]
    torch.testing.assert_close(block(x), block.bn(total).relu())


@pytest.mark.parametrize("block", [RepOptBlock, RepOptSearchBlock])
def test_gradients_through_the_equivalent_kernel_are_those_of_the_branches(block, randomize) -> None:
    block = randomize(block(block_spec(position=3))).double()
    x = torch.randn(3, 8, 5, 6, dtype=torch.float64)
    kernel, bias = equivalent_kernel(block)
    parameters = list(block.parameters())
    actual = torch.autograd.grad(F.conv2d(x, kernel, bias, padding=1).relu().square().sum(), parameters)
    expected = torch.autograd.grad(block(x).square().sum(), parameters)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", [RepOptBlock, RepOptSearchBlock])
def test_groups_are_refused(kind) -> None:
    with pytest.raises(InputError, match="a block has 2 groups; use 1"):
        kind(block_spec(groups=2))


class TestTarget:
    def test_it_has_the_scales_of_the_search(self) -> None:
        search = trained_search()
        target = target_from_search(search, seed=5)
        assert target.spec.name == "RepOpt-VGG-tiny"
        assert target.training
        for block, source in zip(target.stages[2], search.stages[2], strict=True):
            assert torch.equal(block.scale3x3.weight, source.scale3x3.weight)
            assert torch.equal(block.scale1x1.weight, source.scale1x1.weight)

    def test_its_kernels_are_those_of_the_scaled_branches_with_fresh_weights(self) -> None:
        search = trained_search()
        for block in search.modules():
            if isinstance(block, RepOptSearchBlock):
                block.scale3x3.weight.data.fill_(1e-9)
                block.scale1x1.weight.data.fill_(1e-9)
        block = target_from_search(search, seed=5).stages[2][1]
        s0 = search.stages[2][1].scale_identity.weight
        expected = scaled_kernel(torch.zeros(64, 64, 3, 3), torch.zeros(64, 64, 1, 1), s0, s0, s0)
        torch.testing.assert_close(block.conv3x3.weight, expected)

    def test_spread_of_its_weights(self) -> None:
        search = trained_search()
        for block in search.modules():
            if isinstance(block, RepOptSearchBlock):
                block.scale3x3.weight.data.fill_(2.0)
                block.scale1x1.weight.data.fill_(3.0)
        kernel = target_from_search(search, seed=5).stages[2][0].conv3x3.weight
        # torch draws a kernel from a uniform distribution of standard deviation 1 / sqrt(3 * fan_in)
        inputs = kernel.shape[1]
        assert kernel[:, :, 0, 0].std().item() == pytest.approx(2 / math.sqrt(3 * 9 * inputs), rel=0.1)
        center = math.sqrt(4 / (3 * 9 * inputs) + 9 / (3 * inputs))
        assert kernel[:, :, 1, 1].std().item() == pytest.approx(center, rel=0.1)

    def test_seed_decides_and_the_global_generator_is_left_alone(self) -> None:
        search = trained_search()
        before = torch.get_rng_state()
        first, again, other = (target_from_search(search, seed).state_dict() for seed in (1, 1, 2))
        assert torch.equal(torch.get_rng_state(), before)
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert not torch.equal(first["stem.conv3x3.weight"], other["stem.conv3x3.weight"])

    def test_class_count_may_differ_from_the_search(self) -> None:
        assert target_from_search(trained_search(num_classes=4), 0).num_classes == 4
        assert target_from_search(trained_search(num_classes=4), 0, num_classes=9).head.out_features == 9

    @pytest.mark.parametrize("arch", ["RepOpt-VGG-tiny", "RepVGG-tiny"])
    def test_other_networks_are_refused(self, arch) -> None:
        with pytest.raises(InputError, match=f"{arch} in training form has no scales to start from"):
            target_from_search(build(arch, 3), 0)

    def test_fused_search_is_refused(self) -> None:
        with pytest.raises(InputError, match="in deploy form has no scales"):
            target_from_search(reparameterize(trained_search()), 0)

    def test_scales_survive_a_checkpoint_and_are_gone_in_deploy_form(self, tmp_path) -> None:
        target = target_from_search(trained_search(), seed=5)
        save_model(target, tmp_path / "w.safetensors")
        read = load_model(tmp_path / "w.safetensors", "RepOpt-VGG-tiny", 4)
        assert torch.equal(read.stages[1][1].scale3x3.weight, target.stages[1][1].scale3x3.weight)
        assert not any("scale" in name for name in reparameterize(target).state_dict())
        assert not any("scale" in name for name, _ in target.named_parameters())

    @pytest.mark.parametrize("dialect", ["timm", "mmpretrain"])
    def test_dialects_without_names_for_it_are_refused(self, dialect, tmp_path) -> None:
        target = build("RepOpt-VGG-tiny", 3)
        with pytest.raises(InputError, match=rf"the {dialect} dialect has no key for stem\.conv3x3\.weight"):
            save_model(target, tmp_path / "w.pth", dialect)
        save_model(reparameterize(target), tmp_path / "w.pth", dialect)
        assert load_model(tmp_path / "w.pth", "RepOpt-VGG-tiny", 3).form == "deploy"


class TestMultipliers:
    def test_by_hand(self) -> None:
        multiplier = GradientMultiplier(torch.tensor([2.0, -3.0]), torch.tensor([-1.0, 0.5]), has_identity=True)
        squared, once = multiplier.expand(2, power=2), multiplier.expand(2, power=1)
        assert squared[:, :, 0, 2].tolist() == [[4.0, 4.0], [9.0, 9.0]]
        assert squared[:, :, 1, 1].tolist() == [[6.0, 5.0], [9.25, 10.25]]
        assert once[:, :, 2, 1].tolist() == [[2.0, 2.0], [3.0, 3.0]]
        assert once[:, :, 1, 1].tolist() == [[4.0, 3.0], [3.5, 4.5]]

    def test_without_identity(self) -> None:
        factor = GradientMultiplier(torch.tensor([2.0]), torch.tensor([3.0]), has_identity=False).expand(3, power=2)
        assert factor.shape == (1, 3, 3, 3)
        assert factor[0, :, 1, 1].tolist() == [13.0] * 3
        assert factor.sum().item() == 3 * (8 * 4.0 + 13.0)

    def test_every_block_of_a_target_has_one(self) -> None:
        model = target_from_search(trained_search(), seed=0)
        multipliers = gradient_multipliers(model)
        assert multipliers.keys() == {
            module.weight for module in model.modules() if isinstance(module, torch.nn.Conv2d)
        }
        assert multipliers[model.stages[0][1].conv3x3.weight].has_identity
        assert not multipliers[model.stages[0][0].conv3x3.weight].has_identity

    @pytest.mark.parametrize("arch", [SEARCH, "RepVGG-tiny", "QARepVGG-tiny"])
    def test_other_networks_have_none(self, arch) -> None:
        assert gradient_multipliers(build(arch, 3)) == {}
        assert gradient_multipliers(reparameterize(build("RepOpt-VGG-tiny", 3))) == {}


def test_widths_of_a_custom_target() -> None:
    spec = ArchSpec(name="mine", blocks=(1, 2, 1, 1), widths=(0.125,) * 4, block="repopt")
    assert build(spec, 3)(torch.randn(2, 3, 16, 16)).shape == (2, 3)
