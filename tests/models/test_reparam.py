import copy
import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from repquant.errors import InputError
from repquant.models.blocks import DeployBlock, RepVGGBlock
from repquant.models.checkpoints import load_model
from repquant.models.network import RepVGG, build, make_block
from repquant.models.reparam import reparameterize
from repquant.models.spec import ArchSpec, BlockSpec

NETWORKS = [
    ArchSpec(
        name=f"groups {groups}{', SE' if squeeze_excite else ''}",
        blocks=(2, 3, 4, 1),
        widths=(0.25, 0.25, 0.25, 0.25),
        groups=groups,
        squeeze_excite=squeeze_excite,
    )
    for groups, squeeze_excite in itertools.product((1, 2, 4), (False, True))
]


def tolerance(dtype: torch.dtype, reference: Tensor) -> float:
    """1e-9 in float64; in float32 some dozens of roundings of the largest value."""
    return 1e-9 if dtype == torch.float64 else 1e-5 * float(reference.abs().max())


def assert_equal_outputs(model: nn.Module, deploy: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        expected, actual = model(x), deploy(x)
    assert actual.shape == expected.shape
    assert float(expected.abs().max()) > 1e-3, "outputs of zero would show nothing"
    assert float((actual - expected).abs().max()) < tolerance(x.dtype, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("squeeze_excite", [False, True])
@pytest.mark.parametrize("out_channels", [16, 32])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_block_equals_its_branches(groups, stride, out_channels, squeeze_excite, dtype, randomize) -> None:
    spec = BlockSpec(
        in_channels=16, out_channels=out_channels, stride=stride, groups=groups, squeeze_excite=squeeze_excite
    )
    block = randomize(RepVGGBlock(spec)).to(dtype)
    deploy = reparameterize(block)
    assert isinstance(deploy, DeployBlock)
    assert_equal_outputs(block, deploy, torch.randn(2, 16, 9, 14, dtype=dtype))


KINDS = [(kind, groups) for kind in ("plus", "qarepvgg") for groups in (1, 4)] + [("repopt", 1), ("repopt-search", 1)]


@pytest.mark.parametrize("squeeze_excite", [False, True])
@pytest.mark.parametrize("out_channels", [16, 32])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("kind", "groups"), KINDS)
def test_block_of_every_kind_equals_its_branches(kind, groups, stride, out_channels, squeeze_excite, randomize) -> None:
    spec = BlockSpec(
        in_channels=16,
        out_channels=out_channels,
        stride=stride,
        groups=groups,
        squeeze_excite=squeeze_excite,
        kind=kind,
        position=2,
    )
    block = randomize(make_block(spec, "training")).double()
    for name, parameter in block.named_parameters():
        if "scale" in name:
            parameter.data.uniform_(-1.5, 1.5)
    deploy = reparameterize(block)
    assert type(deploy) is DeployBlock
    assert_equal_outputs(block, deploy, torch.randn(2, 16, 9, 14, dtype=torch.float64))


@pytest.mark.parametrize(("kind", "groups"), KINDS)
def test_network_of_every_kind_equals_its_branches(kind, groups, randomize) -> None:
    spec = ArchSpec(name=kind, blocks=(2, 3, 4, 1), widths=(0.25,) * 4, groups=groups, block=kind)
    model = randomize(build(spec, num_classes=7)).double()
    deploy = reparameterize(model)
    assert (deploy.form, deploy.spec) == ("deploy", spec)
    assert deploy.state_dict().keys() == build(spec, 7, "deploy").state_dict().keys()
    assert_equal_outputs(model, deploy, torch.randn(2, 3, 48, 80, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("spec", NETWORKS, ids=lambda spec: spec.name)
def test_network_equals_its_branches(spec, dtype, randomize) -> None:
    model = randomize(build(spec, num_classes=7)).to(dtype)
    deploy = reparameterize(model)
    assert isinstance(deploy, RepVGG)
    assert (deploy.form, deploy.num_classes, deploy.spec) == ("deploy", 7, spec)
    assert_equal_outputs(model, deploy, torch.randn(2, 3, 48, 80, dtype=dtype))


def test_published_architecture_equals_its_branches(randomize) -> None:
    model = randomize(build("RepVGG-A0", num_classes=10)).double()
    assert_equal_outputs(model, reparameterize(model), torch.randn(1, 3, 64, 48, dtype=torch.float64))


def test_state_dict_is_that_of_a_network_built_in_deploy_form() -> None:
    deploy = reparameterize(build(NETWORKS[-1], num_classes=3))
    built = build(NETWORKS[-1], num_classes=3, form="deploy")
    shapes = {name: tensor.shape for name, tensor in deploy.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in built.state_dict().items()}


def test_input_is_not_changed_and_shares_no_memory() -> None:
    model = build(NETWORKS[-1], num_classes=3).train()
    before = copy.deepcopy(model.state_dict())
    random_state = torch.get_rng_state()
    deploy = reparameterize(model)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert model.form == "training"
    assert all(module.training for module in model.modules())
    with torch.no_grad():
        for parameter in deploy.parameters():
            parameter.fill_(7.0)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_result_is_in_eval_mode_and_can_be_trained() -> None:
    deploy = reparameterize(build("RepVGG-tiny", num_classes=3))
    assert not any(module.training for module in deploy.modules())
    assert all(parameter.is_leaf and parameter.requires_grad for parameter in deploy.parameters())


class Detector(nn.Module):
    """A user's own model: blocks inside containers, one of them under two names, and a whole RepVGG."""

    def __init__(self) -> None:
        super().__init__()
        spec = BlockSpec(in_channels=7, out_channels=7, stride=1, groups=1, squeeze_excite=False)
        self.backbone = build("RepVGG-tiny", num_classes=7)
        self.neck = nn.ModuleDict({"lateral": nn.ModuleList([RepVGGBlock(spec), nn.BatchNorm2d(7)])})
        self.shared = self.neck["lateral"][0]
        self.box = nn.Conv2d(7, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.backbone(x)[:, :, None, None].expand(-1, -1, 3, 3)
        for module in self.neck["lateral"]:
            x = module(x)
        return self.box(self.shared(x))


def test_blocks_inside_a_users_model_are_replaced_at_any_depth(randomize) -> None:
    model = randomize(Detector()).double()
    deploy = reparameterize(model)
    assert isinstance(deploy, Detector)
    assert deploy.backbone.form == "deploy"
    assert not any(isinstance(module, RepVGGBlock) for module in deploy.modules())
    assert deploy.shared is deploy.neck["lateral"][0]
    assert_equal_outputs(model, deploy, torch.randn(2, 3, 32, 32, dtype=torch.float64))


def test_deploy_model_is_copied() -> None:
    model = build("RepVGG-tiny", num_classes=3, form="deploy")
    again = reparameterize(model)
    assert again is not model
    assert again.stem.conv.weight is not model.stem.conv.weight
    assert_equal_outputs(model, again, torch.randn(1, 3, 32, 32))


def test_model_without_blocks_is_refused() -> None:
    with pytest.raises(InputError, match="Sequential has no RepVGGBlock; build it from"):
        reparameterize(nn.Sequential(nn.Conv2d(3, 3, 3)))


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["repvgg-a0-custom-l2.pth", "repvgg-a0-plain.pth"])
def test_trained_checkpoints_of_the_official_code(name: str, real_data: Path) -> None:
    model = load_model(real_data / name, "RepVGG-A0", num_classes=10)
    assert model.form == "training"
    x = torch.randn(2, 3, 160, 160)
    assert_equal_outputs(model, reparameterize(model), x)
    model = model.double()
    assert_equal_outputs(model, reparameterize(model), x.double())
