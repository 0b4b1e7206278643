import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer, RMSprop

from repquant.errors import InputError
from repquant.models.network import RepVGG, build
from repquant.models.repopt import GradientMultiplier, gradient_multipliers, target_from_search
from repquant.models.repopt_blocks import RepOptBlock, RepOptSearchBlock, scaled_kernel
from repquant.models.spec import ArchSpec
from repquant.train.gradient_scaling import apply_gradient_scaling

SPEC = ArchSpec(name="x-search", blocks=(1, 2, 1, 1), widths=(0.125, 0.125, 0.0625, 0.0625), block="repopt-search")
STEPS = 6

OPTIMIZERS = {
    "plain SGD": (SGD, {"lr": 0.05}),
    "momentum": (SGD, {"lr": 0.05, "momentum": 0.9}),
    "momentum and weight decay": (SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1}),
    "Nesterov": (SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1, "nesterov": True}),
    "AdamW": (AdamW, {"lr": 0.01, "weight_decay": 0.5, "eps": 1e-30}),
}


def branch_kernel(block: RepOptSearchBlock) -> Tensor:
    s0 = None if block.scale_identity is None else block.scale_identity.weight
    return scaled_kernel(block.conv3x3.weight, block.conv1x1.weight, block.scale3x3.weight, block.scale1x1.weight, s0)


def branches_and_target() -> tuple[RepVGG, RepVGG]:
    """Return a network with constant branch scales of both signs and the target that computes the same."""
    torch.manual_seed(0)
    branches = build(SPEC, 3).double()
    for block in blocks(branches, RepOptSearchBlock):
        for scale in (block.scale3x3.weight, block.scale1x1.weight):
            scale.data.uniform_(0.4, 2.0).mul_(torch.where(torch.rand(len(scale)) < 0.3, -1.0, 1.0))
            scale.requires_grad_(False)
    target = target_from_search(branches, seed=1).double()
    target.head.load_state_dict(branches.head.state_dict())
    for ours, theirs in zip(blocks(target, RepOptBlock), blocks(branches, RepOptSearchBlock), strict=True):
        ours.scale3x3.weight.copy_(theirs.scale3x3.weight)  # float64 again
        ours.scale1x1.weight.copy_(theirs.scale1x1.weight)
        ours.conv3x3.weight.data.copy_(branch_kernel(theirs))
    return branches, target


def blocks(model: nn.Module, kind: type[nn.Module]) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, kind)]


def train(model: RepVGG, optimizer: Optimizer) -> list[float]:
    generator = torch.Generator().manual_seed(2)
    losses = []
    for _ in range(STEPS):
        images = torch.randn(4, 3, 32, 32, dtype=torch.float64, generator=generator)
        loss = F.cross_entropy(model(images), torch.tensor([0, 1, 2, 0]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def largest_difference(target: RepVGG, branches: RepVGG) -> float:
    pairs = zip(blocks(target, RepOptBlock), blocks(branches, RepOptSearchBlock), strict=True)
    return max((ours.conv3x3.weight - branch_kernel(theirs)).abs().max().item() for ours, theirs in pairs)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_target_follows_the_network_with_branches(name: str) -> None:
    kind, options = OPTIMIZERS[name]
    branches, target = branches_and_target()
    start = copy.deepcopy(target)
    expected = train(branches, kind(branches.parameters(), **options))
    optimizer = kind(target.parameters(), **options)
    apply_gradient_scaling(optimizer, gradient_multipliers(target))
    assert train(target, optimizer) == pytest.approx(expected, rel=1e-9)
    assert largest_difference(target, branches) < 1e-9
    assert largest_difference(start, branches) > 1e-3, "a training that does nothing would show nothing"


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_without_scaling_it_goes_another_way(name: str) -> None:
    kind, options = OPTIMIZERS[name]
    branches, target = branches_and_target()
    train(branches, kind(branches.parameters(), **options))
    train(target, kind(target.parameters(), **options))
    assert largest_difference(target, branches) > 1e-3


def one_kernel(kind: type[Optimizer], **options: float) -> tuple[nn.Parameter, Optimizer]:
    parameter = nn.Parameter(torch.ones(1, 1, 3, 3))
    multiplier = GradientMultiplier(torch.tensor([2.0]), torch.tensor([3.0]), has_identity=True)
    optimizer = kind([parameter], **options)
    apply_gradient_scaling(optimizer, {parameter: multiplier})
    return parameter, optimizer


def test_sgd_by_hand() -> None:
    parameter, optimizer = one_kernel(SGD, lr=0.1, weight_decay=0.5)
    parameter.grad = torch.ones(1, 1, 3, 3)
    optimizer.step()
    expected = torch.full((3, 3), 1 - 0.1 * (4 + 0.5))
    expected[1, 1] = 1 - 0.1 * (4 + 9 + 1 + 0.5)
    torch.testing.assert_close(parameter.detach()[0, 0], expected)


def test_adamw_by_hand() -> None:
    parameter, optimizer = one_kernel(AdamW, lr=0.1, weight_decay=0.5)
    parameter.grad = torch.full((1, 1, 3, 3), 7.0)
    optimizer.step()
    # The first update of Adam is lr for every positive gradient.
    expected = torch.full((3, 3), 1 - 0.1 * (2 + 0.5))
    expected[1, 1] = 1 - 0.1 * (2 + 3 + 1 + 0.5)
    torch.testing.assert_close(parameter.detach()[0, 0], expected)


@pytest.mark.parametrize("kind", [SGD, AdamW])
def test_parameters_without_gradient_or_multiplier_are_left_alone(kind) -> None:
    parameter, optimizer = one_kernel(kind, lr=0.1)
    other = nn.Parameter(torch.ones(2))
    optimizer.add_param_group({"params": [other], "weight_decay": 0.0})
    plain = nn.Parameter(torch.ones(2))
    reference = kind([plain], lr=0.1, weight_decay=0.0)
    other.grad, plain.grad = torch.ones(2), torch.ones(2)
    optimizer.step()
    reference.step()
    assert torch.equal(parameter, torch.ones(1, 1, 3, 3))
    assert torch.equal(other, plain)


def test_scales_of_a_checkpoint_that_is_loaded_afterwards_count() -> None:
    _, target = branches_and_target()
    resumed = build(target.spec, 3).double()
    optimizer = SGD(resumed.parameters(), lr=0.05)
    apply_gradient_scaling(optimizer, gradient_multipliers(resumed))
    resumed.load_state_dict(target.state_dict())
    train(resumed, optimizer)
    optimizer = SGD(target.parameters(), lr=0.05)
    apply_gradient_scaling(optimizer, gradient_multipliers(target))
    train(target, optimizer)
    assert torch.equal(resumed.stem.conv3x3.weight, target.stem.conv3x3.weight)


def test_other_optimizers_are_refused() -> None:
    with pytest.raises(InputError, match="defined for SGD and AdamW, and RMSprop was given"):
        one_kernel(RMSprop)


def test_networks_without_multipliers_train_with_any_optimizer() -> None:
    model = build("RepVGG-tiny", 2)
    apply_gradient_scaling(RMSprop(model.parameters()), gradient_multipliers(model))
