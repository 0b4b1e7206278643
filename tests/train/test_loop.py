import dataclasses
import math
import re

import pytest
import torch

from repquant.errors import InputError
from repquant.train.checkpoint import Checkpoint, checkpoint_path
from repquant.train.loop import DivergedError, top1
from repquant.train.losses import custom_l2


def ignore(_: object) -> None:
    pass


def fit(trainer, folder) -> None:
    trainer.fit(folder, on_images=ignore, on_epoch=ignore)


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
    counts, reports = [], []
    assert training.remaining_images == 64
    training.fit(tmp_path, on_images=counts.append, on_epoch=reports.append)
    assert counts == [8] * 8
    assert reports == training.history
    assert training.remaining_images == 0


BFLOAT16 = {"precision": "bfloat16", "image_size": 32, "custom_l2": True, "warmup_epochs": 1.5}


@pytest.mark.parametrize("changes", [{}, BFLOAT16])
def test_a_resumed_run_has_the_same_bits(recipe, trainer, tmp_path, changes):
    plan = recipe(epochs=3, **changes)
    interrupted = trainer(plan)
    interrupted.run_epoch(ignore)
    interrupted.checkpoint().save(tmp_path)
    random_state = torch.get_rng_state()

    whole = trainer(plan)
    for _ in range(3):
        whole.run_epoch(ignore)

    resumed = trainer(plan, weights_seed=99)
    torch.manual_seed(7)
    resumed.restore(Checkpoint.load(checkpoint_path(tmp_path, 1)))
    assert torch.equal(torch.get_rng_state(), random_state)
    fit(resumed, tmp_path)

    expected, state = whole.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    for before, after in zip(
        whole.checkpoint().optimizer["state"].values(), resumed.checkpoint().optimizer["state"].values(), strict=True
    ):
        assert torch.equal(before["momentum_buffer"], after["momentum_buffer"])
    timeless = [
        [dataclasses.replace(report, train_seconds=0, images_per_second=0) for report in training.history]
        for training in (whole, resumed)
    ]
    assert timeless[0] == timeless[1]


def test_the_seed_decides(recipe, trainer):
    first, other = (trainer(recipe(seed=seed)).run_epoch(ignore).loss for seed in (0, 1))
    assert first == trainer(recipe(seed=0)).run_epoch(ignore).loss
    assert first != other


def test_other_images_are_refused_on_resume(recipe, trainer):
    checkpoint = trainer(recipe()).checkpoint()
    with pytest.raises(InputError, match="the run has 4 steps an epoch, these training images give 2"):
        trainer(recipe(), images=16).restore(checkpoint)


def test_custom_l2_shrinks_what_it_measures(recipe, trainer):
    measures = []
    for is_custom in (True, False):
        training = trainer(recipe(custom_l2=is_custom, weight_decay=0.05, warmup_epochs=0.5))
        if not is_custom:
            for group in training._optimizer.param_groups:
                group["weight_decay"] = 0.0
        before = custom_l2(training.model).item()
        training.run_epoch(ignore)
        measures.append(custom_l2(training.model).item() / before)
    assert measures[0] < 0.95 * measures[1]


def set_nan(training) -> None:
    training.model.head.weight.data[0, 0] = math.nan


def test_a_nan_loss_stops_with_step_rate_and_last_good_checkpoint(recipe, trainer, tmp_path):
    training = trainer(recipe(epochs=3))
    rate = 0.05 * (1 + math.cos(math.pi * 4 / 12))
    expected = (
        f"the loss is nan at step 5 of 12 (epoch 2), learning rate {rate:.6g}; lower --learning-rate or raise "
        f"--warmup-epochs. Last good checkpoint: {checkpoint_path(tmp_path, 1)}"
    )
    with pytest.raises(DivergedError, match=re.escape(expected)):
        training.fit(tmp_path, on_images=ignore, on_epoch=lambda _: set_nan(training))
    assert Checkpoint.load(checkpoint_path(tmp_path, 1)).history[0]["epoch"] == 1


def test_a_loss_that_is_not_finite_in_the_first_epoch(recipe, trainer, tmp_path):
    training = trainer(recipe())
    set_nan(training)
    with pytest.raises(
        DivergedError, match=r"step 1 of 12 \(epoch 1\).* Last good checkpoint: none, in the first epoch"
    ):
        fit(training, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_finite_are_not_saved(recipe, trainer, tmp_path):
    training = trainer(recipe(), images=8)  # one step, after which no loss is computed
    training._optimizer.register_step_post_hook(lambda *_: set_nan(training))
    with pytest.raises(DivergedError, match="weights are not finite at step 1 of 3"):
        fit(training, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_images_too_small_for_bfloat16_on_the_cpu_are_refused(recipe, trainer):
    with pytest.raises(InputError, match=r"bfloat16 gives wrong gradients .* of 16 pixels; .* --image-size 17 or more"):
        trainer(recipe(image_size=16, precision="bfloat16"))
    trainer(recipe(image_size=17, precision="bfloat16"))


def test_top1_of_a_network_that_names_one_class(recipe, trainer):
    training = trainer(recipe())
    training.model.head.weight.data.zero_()
    training.model.head.bias.data.copy_(torch.tensor([0.0, 1.0]))
    training.model.train()
    assert top1(training.model, training._validation, torch.device("cpu")) == 50
    assert not training.model.training
