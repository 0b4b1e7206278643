import copy

import pytest
import torch
from torch import nn

from repquant.errors import InputError
from repquant.graph.channels import find_channels
from repquant.methods.ptq import PtqMethod
from repquant.models.network import build
from repquant.models.reparam import reparameterize
from repquant.qat.distillation import distillation_loss
from repquant.qat.network import activation_quantizers, make_trainable, qat_layers
from repquant.repvgg.branches import scale_branches
from repquant.repvgg.qat_recipe import RepVGGQatRecipe
from repquant.repvgg.qat_start import StartOptions, captured, start_qat
from repquant.repvgg.qat_task import RepVGGQatTask
from repquant.targets.target import resolve_target
from repquant.train.recipe import Recipe


def recipe_of(**changes):
    return RepVGGQatRecipe(**{"arch": "few", "num_classes": 5, "epochs": 2} | changes)


def task_of(model, images, equalization="none", **changes):
    recipe = recipe_of(**changes)
    options = StartOptions(method=recipe.method, ptq=PtqMethod(equalization=equalization, rounding="nearest"))
    target = resolve_target("tensorrt")
    start = start_qat(model, options, target, lambda: [images], list)
    network = make_trainable(
        start.graph, start.plan, sources=start.sources, weight_scales=recipe.resolved_weight_scales
    )
    return RepVGGQatTask(network, recipe, captured(reparameterize(model)))


@pytest.fixture
def model(training_network):
    return training_network()


@pytest.fixture
def labels():
    return torch.arange(8) % 5


def test_the_float_model_is_the_aim(model, images, labels):
    task = task_of(model, images)
    objective = task.objective(task.model, images, labels)
    with torch.no_grad():
        aim = model(images)
    assert float(objective.loss.detach()) == pytest.approx(
        float(distillation_loss(objective.logits.detach(), aim)), rel=0.05
    )
    assert objective.total is objective.loss


def test_labels_take_the_rest(model, images, labels):
    task = task_of(model, images, distillation=0.25)
    objective = task.objective(task.model, images, labels)
    with torch.no_grad():
        aim = model(images)
        logits = objective.logits
        expected = 0.25 * distillation_loss(logits, aim) + 0.75 * nn.functional.cross_entropy(logits, labels)
    assert float(objective.loss.detach()) == pytest.approx(float(expected), rel=1e-4)


def test_block_outputs_are_compared(model, images, labels):
    task = task_of(model, images, block_distillation=2.0)
    objective = task.objective(task.model, images, labels)
    error = float((objective.total - objective.loss).detach()) / 2
    assert 0 < error < 0.05
    assert not any(module._forward_hooks for module in task.model.modules())


def rates_of(task):
    names = {id(parameter): name for name, parameter in task.model.named_parameters()}
    groups = [(names.pop(id(p)), group) for group in task.parameter_groups() for p in group["params"]]
    assert names == {}
    return {name: (group["lr_scale"], group["weight_decay"]) for name, group in groups}


def test_scales_have_a_rate_of_their_own(model, images):
    rates = rates_of(task_of(model, images, optimizer="sgd", weight_scales="learned", scale_rate=0.1, weight_decay=0.5))
    for name, (rate, decay) in rates.items():
        assert rate == (0.1 if name.endswith(".scale") else 1.0)
        assert decay == (0.5 if name.endswith("conv.weight") or name == "head.source.weight" else 0.0), name
    assert sum(name.endswith(".scale") for name in rates) == 2 * 7  # five blocks, head; the stem's kernel, the pool


def test_updates_of_adamw_are_measured_in_steps_of_the_grid(model, images):
    task = task_of(model, images)
    rates = {name: rate for name, (rate, _) in rates_of(task).items()}
    layer = qat_layers(task.model)["stages.1.1.conv"]
    step = float(layer.weight_grid().scale.mean())
    assert rates["stages.1.1.conv.source.block.conv3x3.conv.weight"] == pytest.approx(step)
    assert rates["stages.1.1.conv.source.block.conv1x1.conv.weight"] == pytest.approx(step)
    gamma = layer.source.block.identity.weight
    expected = float(gamma.detach().square().mean().sqrt()) / 127
    assert rates["stages.1.1.conv.source.block.identity.weight"] == pytest.approx(expected)
    assert rates["stages.1.1.conv.input.scale"] == pytest.approx(float(layer.input.scale.detach()) / 127)


def test_the_same_learning_rate_moves_scaled_channels_in_proportion(model, images):
    """A network whose channels were scaled computes the same, and trains the same."""
    deploy = reparameterize(model)
    channels = find_channels(captured(deploy))
    scales = torch.full((channels.count,), 50.0)
    rates = []
    for network in (model, scale_branches(model, channels, scales)):
        task = task_of(network, images, method="plain")
        kernel = task.model.stem.conv.source.weight
        rate = rates_of(task)["stem.conv.source.weight"][0]
        rates.append(rate / float(kernel.detach().abs().max()))
    assert rates[0] == pytest.approx(rates[1], rel=1e-3)


def test_rounding_spreads_from_the_first_layer_to_the_last(model, images):
    task = task_of(model, images, gradual_epochs=1.0)
    modules = [*activation_quantizers(task.model).values()]
    rounding = []
    for step in (0, 5, 9, 10, 19):
        task.before_step(step, 20)
        flags = [module.enabled for module in modules]
        assert all(layer.weight.enabled is layer.input.enabled for layer in qat_layers(task.model).values())
        assert flags == sorted(flags, reverse=True)
        rounding.append(sum(flags))
    assert rounding[0] == 1
    assert rounding[1] < rounding[2] <= len(modules)
    assert rounding[3:] == [len(modules)] * 2
    task_of(model, images).before_step(0, 20)


def test_layers_that_do_not_round_yet_have_gradients_for_distributed_training(model, images, labels):
    task = task_of(model, images, gradual_epochs=1.0, weight_scales="learned")
    task.model.train()
    task.before_step(0, 20)
    task.objective(task.model, images, labels).total.backward()
    assert [name for name, p in task.model.named_parameters() if p.grad is None] == []
    waiting = [*activation_quantizers(task.model).values()][-1]
    assert not waiting.enabled
    assert float(waiting.scale.grad) == 0.0


def test_blocks_are_compared_up_to_the_scale_of_their_channels(model, images, labels):
    """At the start the network computes what the teacher does, its channels scaled for rounding."""
    errors = {}
    for equalization in ("none", "noise"):
        task = task_of(model, images, equalization=equalization, block_distillation=1.0, distillation=0.0)
        task.model.eval()
        objective = task.objective(task.model, images, labels)
        errors[equalization] = float((objective.total - objective.loss).detach())
    assert 0 < errors["noise"] < 1e-2
    assert errors["none"] < 1e-2


def test_kernels_that_follow_statistics_have_scales_that_follow_them():
    assert recipe_of(method="inserted-bn").resolved_weight_scales == "max"
    assert recipe_of(method="plain").resolved_weight_scales == "fixed"
    assert recipe_of(statistics="refreshed").resolved_weight_scales == "max"
    assert recipe_of(method="inserted-bn", weight_scales="learned").resolved_weight_scales == "learned"


def test_inserted_normalizations_freeze_after_a_set_point(model, images):
    task = task_of(model, images, method="inserted-bn", freeze_epochs=0.5)
    bn = task.model.stem.conv.source.bn
    task.model.train()
    moving = []
    for step in range(0, 20, 4):
        task.before_step(step, 20)
        moving.append(bn.training)
    assert moving == [True, True, False, False, False]


def test_statistics_of_branches_are_refreshed_or_not(model, images):
    for statistics in ("frozen", "refreshed"):
        every = {"refresh_steps": 2} if statistics == "refreshed" else {}
        task = task_of(model, images, statistics=statistics, **every)
        bn = task.model.stem.conv.source.block.conv3x3.bn
        task.model.train()
        moved = []
        for step in range(4):
            before = copy.deepcopy(bn.running_mean)
            task.before_step(step, 8)
            task.model(images)
            moved.append(not torch.equal(before, bn.running_mean))
        assert moved == ([True, False, True, False] if statistics == "refreshed" else [False] * 4)
        before = copy.deepcopy(bn.running_mean)
        task.before_step(0, 8)
        task.model.eval()(images)
        assert torch.equal(before, bn.running_mean)


def test_a_teacher_of_other_classes_or_blocks_is_refused(model, images, training_network):
    task = task_of(model, images)
    with pytest.raises(InputError, match=r"outputs have the shapes \[\(7,\)\] for an image, the network's \[\(5,\)\]"):
        RepVGGQatTask(task.model, recipe_of(), captured(reparameterize(training_network(classes=7))))
    other = captured(build("RepVGG-tiny", 5, "deploy"))
    RepVGGQatTask(task.model, recipe_of(), other)
    with pytest.raises(InputError, match="pass `block_distillation=0`"):
        RepVGGQatTask(task.model, recipe_of(block_distillation=1.0), other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "magic"}, "`method='magic'` was given; allowed is one of equivalent-kernel, plain, inserted-bn"),
        ({"weight_scales": "mean"}, "`weight_scales='mean'` was given"),
        ({"activation_scales": "max"}, "`activation_scales='max'` was given"),
        ({"precision": "bfloat16"}, "`precision='bfloat16'` was given; allowed is float32"),
        ({"statistics": "batch"}, "`statistics='batch'` was given"),
        ({"distillation": 1.5}, "`distillation=1.5` was given; allowed is from 0 to 1"),
        ({"temperature": 0.0}, "`temperature=0.0` was given"),
        ({"refresh_steps": 0}, "`refresh_steps=0` was given"),
        ({"gradual_epochs": 1.5}, "`gradual_epochs=1.5` was given; allowed is at most 1.0, half of the epochs"),
        ({"teacher_arch": "few"}, "`teacher_arch='few'` has no checkpoint; pass `teacher` too"),
        ({"ema_decay": 0.9}, "`ema_decay=0.9` was given; allowed is 0.0: it is an option of float training"),
        ({"custom_l2": True}, "`custom_l2=True` was given; allowed is False: it is an option of float training"),
        ({"freeze_stages": 1}, "`freeze_stages=1` was given"),
        ({"init_weights": "a.pth"}, "`init_weights='a.pth'` was given"),
        ({"teacher": "a.pth", "distillation": 0.0}, "`teacher` was given, and nothing is distilled"),
        ({"method": "plain", "statistics": "refreshed"}, '`statistics="refreshed"` is for `method="equiv'),
        ({"gradual_epochs": -1.0}, "`gradual_epochs=-1.0` was given"),
        ({"epochs": 0}, "`epochs=0` was given"),
    ],
)
def test_settings_out_of_range(change, message):
    with pytest.raises(InputError, match=message):
        recipe_of(**change)


@pytest.mark.parametrize(
    ("changes", "steps", "rate"),
    [({}, 1400, 1e-3), ({}, 20, 1e-2), ({"optimizer": "sgd"}, 1400, 1e-3), ({"learning_rate": 0.3}, 1400, 0.3)],
)
def test_a_learning_rate_that_is_not_given_suits_the_number_of_steps(changes, steps, rate):
    assert recipe_of(**changes).with_learning_rate(steps).learning_rate == rate


def test_float_training_has_no_learning_rate_of_its_own():
    assert recipe_of(learning_rate=0.0).learning_rate == 0
    with pytest.raises(InputError, match=r"`learning_rate=0\.0` was given; allowed is more than 0"):
        Recipe(arch="few", learning_rate=0.0)
    with pytest.raises(InputError, match=r"`learning_rate=-1\.0` was given"):
        recipe_of(learning_rate=-1.0)
