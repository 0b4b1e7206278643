import dataclasses
import math
import re

import pytest
import torch
from torch.nn.functional import cross_entropy

from repquant.errors import InputError
from repquant.models.network import build
from repquant.models.spec import ArchSpec
from repquant.train.checkpoint import Checkpoint, checkpoint_path, newest_checkpoint
from repquant.train.loop import DivergedError
from repquant.train.losses import custom_l2
from repquant.train.optim import make_optimizer
from repquant.train.reports import EpochReport
from repquant.train.task import FloatTask
from repquant.train.validation import top1


def ignore(_: object) -> None:
    pass


def fit(trainer, folder) -> None:
    trainer.fit(folder, on_step=ignore, on_epoch=ignore)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_it_learns(recipe, trainer, tmp_path, precision):
    training = trainer(recipe(epochs=6, learning_rate=0.05, image_size=32, precision=precision))
    fit(training, tmp_path)
    first, last = training.history[0], training.history[-1]
    assert [report.epoch for report in training.history] == [1, 2, 3, 4, 5, 6]
    assert last.loss < first.loss
    assert last.train_top1 >= 90
    assert last.val_top1 == 100
    assert last.images_per_second > 0
    assert all(parameter.dtype == torch.float32 for parameter in training.model.parameters())


def test_progress_and_reports(recipe, trainer, tmp_path):
    training = trainer(recipe(epochs=2), images=35)
    steps, reports = [], []
    assert training.remaining_images == 64
    training.fit(tmp_path, on_step=steps.append, on_epoch=reports.append)
    assert [(step.step, step.images) for step in steps] == [(number, 8) for number in range(1, 9)]
    assert all(0 <= step.data_percent <= 100 for step in steps)
    assert steps[0].loss is None  # it is read after the step
    assert steps[1].loss > 0
    assert reports == training.history
    assert training.remaining_images == 0


def timeless(training) -> list[EpochReport]:
    nothing = {"train_seconds": 0, "images_per_second": 0, "data_percent": 0}
    return [dataclasses.replace(report, **nothing) for report in training.history]


def assert_same_bits(trained, expected) -> None:
    states = (training.checkpoint() for training in (trained, expected))
    flat = [
        {
            **state.model,
            **{f"average {name}": tensor for name, tensor in (state.average or {}).items()},
            **{
                f"{key} {name}": tensor
                for key, buffers in state.optimizer["state"].items()
                for name, tensor in buffers.items()
            },
        }
        for state in states
    ]
    assert flat[0].keys() == flat[1].keys()
    assert all(torch.equal(flat[0][name], tensor) for name, tensor in flat[1].items())
    assert timeless(trained) == timeless(expected)


class StopAfterError(Exception):
    pass


def fit_until(training, folder, step: int, **options: object) -> None:
    """Break off as if the process had been killed after a step."""

    def on_step(report) -> None:
        if report.step == step:
            raise StopAfterError

    with pytest.raises(StopAfterError):
        training.fit(folder, on_step=on_step, on_epoch=ignore, **options)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"precision": "bfloat16", "image_size": 32, "custom_l2": True, "warmup_epochs": 1.5},
        {"ema_decay": 0.9, "optimizer": "adamw", "learning_rate": 0.001, "clip_norm": 1.0},
        {"accumulation_steps": 2, "size_schedule": "0:16,1:24", "freeze_stages": 2},
    ],
    ids=["sgd", "bfloat16", "average", "parts"],
)
def test_a_run_resumed_within_an_epoch_has_the_same_bits(recipe, trainer, tmp_path, changes):
    plan = recipe(epochs=3, **changes)
    fit_until(trainer(plan), tmp_path, step=8, checkpoint_steps=3)
    newest = newest_checkpoint(tmp_path).checkpoint
    assert newest.step == 6
    resumed = trainer(plan, weights_seed=99)
    torch.manual_seed(7)
    resumed.restore(newest)
    assert resumed.remaining_images == 6 * 8
    fit(resumed, tmp_path)

    whole = trainer(plan)
    (tmp_path / "whole").mkdir()
    fit(whole, tmp_path / "whole")
    assert_same_bits(resumed, whole)


def one_epoch(training, folder) -> EpochReport:
    fit_until(training, folder, step=5)
    return training.history[0]


def test_the_seed_decides(recipe, trainer, tmp_path):
    losses = [one_epoch(trainer(recipe(seed=seed)), tmp_path).loss for seed in (0, 0, 1)]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


def test_other_images_are_refused_on_resume(recipe, trainer):
    checkpoint = trainer(recipe()).checkpoint()
    with pytest.raises(InputError, match="the run has 4 steps an epoch, these training images give 2"):
        trainer(recipe(), images=16).restore(checkpoint)


def test_custom_l2_shrinks_what_it_measures(recipe, trainer, tmp_path):
    measures = []
    for is_custom in (True, False):
        training = trainer(recipe(custom_l2=is_custom, weight_decay=0.05, warmup_epochs=0.5))
        if not is_custom:
            for group in training._stepper.optimizer.param_groups:
                group["weight_decay"] = 0.0
        before = custom_l2(training.model).item()
        one_epoch(training, tmp_path)
        measures.append(custom_l2(training.model).item() / before)
    assert measures[0] < 0.95 * measures[1]


def set_nan(training) -> None:
    training.model.head.weight.data[0, 0] = math.nan


def test_a_nan_loss_stops_with_step_rate_and_last_good_checkpoint(recipe, trainer, tmp_path):
    training = trainer(recipe(epochs=3))
    rate = 0.05 * (1 + math.cos(math.pi * 4 / 12))
    expected = (
        f"the loss is nan at step 5 of 12 (epoch 2), learning rate {rate:.6g}; lower `learning_rate` or raise "
        f"`warmup_epochs`. Last good checkpoint: {checkpoint_path(tmp_path, 4)}"
    )
    with pytest.raises(DivergedError, match=re.escape(expected)):
        training.fit(tmp_path, on_step=ignore, on_epoch=lambda _: set_nan(training))
    assert Checkpoint.load(checkpoint_path(tmp_path, 4)).history[0]["epoch"] == 1


def test_a_loss_that_is_not_finite_in_the_first_epoch(recipe, trainer, tmp_path):
    training = trainer(recipe())
    set_nan(training)
    with pytest.raises(DivergedError, match=r"step 1 of 12 \(epoch 1\).* Last good checkpoint: none yet"):
        fit(training, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_finite_are_not_saved(recipe, trainer, tmp_path):
    training = trainer(recipe(), images=8)  # one step, after which no loss is computed
    training._stepper.optimizer.register_step_post_hook(lambda *_: set_nan(training))
    with pytest.raises(DivergedError, match="weights are not finite at step 1 of 3"):
        fit(training, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_gradients_of_parts_add_up_to_those_of_the_batch(recipe, trainer, tmp_path):
    """In eval mode, where batch normalization does not see which images share a part."""
    weights = []
    for parts in (1, 4):
        training = trainer(recipe(accumulation_steps=parts, freeze_stages=5, epochs=1))
        fit(training, tmp_path)
        weights.append(training.model.head.weight.detach())
    torch.testing.assert_close(weights[0], weights[1])


def test_frozen_parts_keep_weights_and_statistics(recipe, trainer, tmp_path):
    training = trainer(recipe(freeze_stages=2, epochs=1))
    before = {name: tensor.clone() for name, tensor in training.model.state_dict().items()}
    fit(training, tmp_path)
    changed = {name for name, tensor in training.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert not any(name.startswith(("stem.", "stages.0.")) for name in changed)
    assert {"stages.1.0.conv3x3.conv.weight", "stages.1.0.conv3x3.bn.running_mean", "head.weight"} <= changed


def test_the_average_of_weights_is_validated_and_kept_by_its_formula(recipe, trainer, tmp_path):
    training = trainer(recipe(ema_decay=0.75, epochs=1))
    seen = []
    training._stepper.optimizer.register_step_post_hook(
        lambda *_: seen.append(training.model.head.bias.detach().clone())
    )
    validated = []
    training._stepper.result.register_forward_pre_hook(lambda *_: validated.append(True))
    fit(training, tmp_path)
    expected = seen[0]
    for bias in seen[1:]:
        expected = 0.75 * expected + 0.25 * bias
    torch.testing.assert_close(training.result.head.bias.detach(), expected)
    assert validated
    assert training.result is not training.model


def test_the_norm_of_the_gradient_is_limited(recipe, trainer, tmp_path):
    norms = []
    for clip_norm in (0.0, 0.01):
        training = trainer(recipe(clip_norm=clip_norm, epochs=1))
        parameters = list(training.model.parameters())
        training._stepper.optimizer.register_step_pre_hook(
            lambda *_, parameters=parameters: norms.append(
                torch.stack([parameter.grad.norm() for parameter in parameters]).norm().item()
            )
        )
        fit(training, tmp_path)
    assert min(norms[:4]) > 0.02
    assert norms[4:] == [pytest.approx(0.01, rel=1e-3)] * 4


def test_mixed_batches_are_seeded_by_the_step(recipe, trainer, tmp_path):
    plan = recipe(mixup=0.4, cutmix=1.0, image_size=32, epochs=1)
    first, again, plain = trainer(plan), trainer(plan), trainer(recipe(image_size=32, epochs=1))
    for training in (first, again, plain):
        torch.manual_seed(len(str(training)))
        fit(training, tmp_path)
    assert first.history[0].loss == again.history[0].loss
    assert first.history[0].loss != plain.history[0].loss


class TwoHeads(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head, self.auxiliary = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)

    def forward(self, x):
        x = x.mean(dim=(2, 3))
        return (self.head(x), (self.auxiliary(x),)) if self.training else self.head(x)


def test_auxiliary_heads_add_their_loss_to_the_objective_alone(recipe):
    plan = recipe(auxiliary_weight=0.25, label_smoothing=0.0)
    model, generator = TwoHeads(), torch.Generator().manual_seed(0)
    images, labels = torch.randn(4, 3, 8, 8, generator=generator), torch.tensor([0, 1, 1, 0])
    objective = FloatTask(model, plan).objective(model, images, labels)
    features = images.mean(dim=(2, 3))
    loss, auxiliary = (cross_entropy(head(features), labels) for head in (model.head, model.auxiliary))
    torch.testing.assert_close(objective.loss, loss)
    torch.testing.assert_close(objective.total, loss + 0.25 * auxiliary)
    assert torch.equal(objective.logits, model.head(features))


def test_a_repopt_network_trains_with_its_gradient_multipliers(recipe, tmp_path):
    """Twice the scales, four times the step of the first kernel, where weight decay and momentum have no part."""
    moves = []
    for factor in (1.0, 2.0):
        torch.manual_seed(0)
        spec = ArchSpec(name="RepOpt-test", blocks=(1, 1, 1, 1), widths=(0.125,) * 4, block="repopt")
        model = build(spec, 2)
        model.stem.scale3x3.weight.fill_(factor)
        model.stem.scale1x1.weight.fill_(factor)
        kernel = model.stem.conv3x3.weight
        before = kernel.detach().clone()
        task = FloatTask(model, recipe(weight_decay=0.0))
        optimizer = make_optimizer(task.parameter_groups(), recipe(learning_rate=0.1))
        task.prepare_optimizer(optimizer)
        kernel.grad = torch.ones_like(kernel)
        optimizer.step()
        moves.append(kernel.detach() - before)
    torch.testing.assert_close(moves[1], 4 * moves[0], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own
def test_a_compiled_epoch_is_near_that_of_the_network_itself(recipe, trainer, tmp_path):
    reports = {}
    for name, settings in {"eager": {}, "compiled": {"compile": True}}.items():
        folder = tmp_path / name
        folder.mkdir()
        training = trainer(recipe(epochs=2, image_size=32, **settings))
        reports[name] = one_epoch(training, folder)
    assert not any(name.startswith("_orig_mod") for name in training.model.state_dict())
    assert reports["compiled"].loss == pytest.approx(reports["eager"].loss, rel=1e-3)


def test_compiling_leaves_the_layout_alone_on_the_cpu(recipe, trainer, monkeypatch):
    given = {}
    monkeypatch.setattr(torch, "compile", lambda network, **settings: given.update(settings) or network)
    trainer(recipe(compile=True))
    assert given == {"options": {"layout_optimization": False}}


def test_compiling_needs_a_compiler(recipe, trainer, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(InputError, match="needs a C\\+\\+ compiler, and there is no no-such-compiler"):
        trainer(recipe(compile=True))


@pytest.mark.cuda
@pytest.mark.parametrize(
    "settings",
    [{"precision": "float32"}, {"precision": "bfloat16"}, {"precision": "float16"}, {"compile": True}],
    ids=str,
)
def test_an_epoch_on_cuda_is_near_that_of_the_cpu(recipe, trainer, tmp_path, settings, cuda):
    reports = {}
    for device in ("cpu", "cuda"):
        chosen = recipe(epochs=2, image_size=32, **({} if device == "cpu" else settings))
        folder = tmp_path / device
        folder.mkdir()
        reports[device] = one_epoch(trainer(chosen, device=device), folder)
    assert reports["cuda"].loss == pytest.approx(reports["cpu"].loss, rel=0.1)


def test_float16_is_for_gpus(recipe, trainer):
    with pytest.raises(InputError, match='`precision="float16"` needs `device="cuda"`; pass bfloat16 or float32'):
        trainer(recipe(precision="float16"))


def test_every_size_of_a_schedule_must_be_large_enough_for_bfloat16(recipe, trainer):
    with pytest.raises(InputError, match="wrong gradients on the CPU for images of 16 pixels"):
        trainer(recipe(image_size=32, size_schedule="0:16,1:32", precision="bfloat16"))


def test_images_too_small_for_bfloat16_on_the_cpu_are_refused(recipe, trainer):
    with pytest.raises(
        InputError, match=r"bfloat16.* gives wrong gradients .* of 16 pixels; .* `image_size=17` or more"
    ):
        trainer(recipe(image_size=16, precision="bfloat16"))
    trainer(recipe(image_size=17, precision="bfloat16"))


def test_top1_of_a_network_that_names_one_class(recipe, trainer):
    training = trainer(recipe())
    training.model.head.weight.data.zero_()
    training.model.head.bias.data.copy_(torch.tensor([0.0, 1.0]))
    training.model.train()
    assert top1(training.model, training._validation, torch.device("cpu")) == 50
    assert not training.model.training
