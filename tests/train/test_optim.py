import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from repquant.models.network import build
from repquant.models.spec import ArchSpec
from repquant.train.optim import decayed_and_free, learning_rate, make_optimizer, set_learning_rate
from repquant.train.task import FloatTask

SPEC = ArchSpec(name="test", blocks=(1, 2, 1, 1), widths=(0.25, 0.25, 0.25, 0.25), squeeze_excite=True)


def names(model: nn.Module, parameters: list[nn.Parameter]) -> set[str]:
    by_id = {id(parameter): name for name, parameter in model.named_parameters()}
    return {by_id[id(parameter)] for parameter in parameters}


@pytest.fixture
def model() -> nn.Module:
    return build(SPEC, 10)


def test_kernels_decay_and_biases_and_batch_normalization_do_not(model):
    decayed, free = (names(model, group) for group in decayed_and_free(model, custom_l2=False))
    assert decayed | free == {name for name, _ in model.named_parameters()}
    assert not decayed & free
    normalized = {
        f"{name}.{kind}"
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for kind in ("weight", "bias")
    }
    assert "stages.1.1.identity.weight" in normalized
    assert free == normalized | {name for name in decayed | free if name.endswith(".bias")}


def test_custom_l2_replaces_the_decay_of_branch_kernels_alone(model):
    plain, _ = (names(model, group) for group in decayed_and_free(model, custom_l2=False))
    custom, _ = (names(model, group) for group in decayed_and_free(model, custom_l2=True))
    assert plain - custom == {name for name in plain if "conv3x3" in name or "conv1x1" in name}
    assert custom == {"head.weight"} | {name for name in plain if ".se." in name}


def test_frozen_parameters_are_left_out(model):
    model.stem.requires_grad_(False)
    decayed, free = decayed_and_free(model, custom_l2=False)
    assert not any(name.startswith("stem") for name in names(model, decayed + free))


def test_the_optimizer_is_sgd_without_nesterov(model, recipe):
    optimizer = make_optimizer(FloatTask(model, recipe()).parameter_groups(), recipe(weight_decay=5e-4, momentum=0.8))
    assert type(optimizer) is torch.optim.SGD
    for group in optimizer.param_groups:
        assert (group["momentum"], group["nesterov"], group["dampening"]) == (0.8, False, 0)


def test_adamw_on_request(model, recipe):
    plan = recipe(optimizer="adamw", weight_decay=0.05)
    optimizer = make_optimizer(FloatTask(model, plan).parameter_groups(), plan)
    assert type(optimizer) is torch.optim.AdamW
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05, 0.0]
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)


def test_groups_may_have_their_own_scale_of_the_learning_rate(recipe):
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": parameters[:1], "weight_decay": 0.0}, {"params": parameters[1:], "lr_scale": 0.1}]
    optimizer = make_optimizer(groups, recipe())
    set_learning_rate(optimizer, 2.0)
    assert [group["lr"] for group in optimizer.param_groups] == [2.0, pytest.approx(0.2)]


def rates(total_steps: int, warmup_steps: int) -> list[float]:
    return [
        learning_rate(step, total_steps=total_steps, warmup_steps=warmup_steps, peak=2.0) for step in range(total_steps)
    ]


def test_cosine_by_hand():
    assert rates(4, 0) == pytest.approx([2, 1 + 0.5**0.5, 1, 1 - 0.5**0.5])


def test_warmup_by_hand():
    assert rates(6, 2) == pytest.approx([1, 2, 2, 1 + 0.5**0.5, 1, 1 - 0.5**0.5])


def test_cosine_is_that_of_torch():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = CosineAnnealingLR(optimizer, T_max=50)
    expected = []
    for _ in range(50):
        expected += scheduler.get_last_lr()
        optimizer.step()
        scheduler.step()
    assert rates(50, 0) == pytest.approx(expected)
