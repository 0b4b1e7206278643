"""Runs that are killed, asked to stop, or find the disk full."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from repquant.train import loop
from repquant.train.checkpoint import Checkpoint, checkpoint_path, newest_checkpoint
from repquant.train.distributed import ONE
from repquant.train.loop import DivergedError
from repquant.train.resuming import restore
from repquant.train.stopping import StoppedError, listening, stoppable


def ignore(_: object) -> None:
    pass


@pytest.mark.parametrize("kills", [4, pytest.param(24, marks=pytest.mark.slow)])
def test_killed_runs_end_with_the_bits_of_one_that_was_left_alone(tmp_path, kills, record_property):
    script = Path(__file__).with_name("killed_runs.py")
    command = [sys.executable, str(script), str(tmp_path), str(kills), "5"]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=one_thread)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    record_property("counts", {"tries": report["kills"], "failures": 0})
    assert report["kills"] >= kills
    assert report["identical"]
    assert any(step > 0 for step in report["steps"]), "no run got as far as a checkpoint"


def asked_to_stop(number: signal.Signals, step: int):
    def on_step(report) -> None:
        if report.step == step:
            signal.raise_signal(number)

    return on_step


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("step", [2, 4, 12], ids=["within", "end of an epoch", "last"])
def test_a_run_that_is_asked_to_stop_writes_a_checkpoint(recipe, trainer, tmp_path, number, step):
    handler = signal.getsignal(number)
    with pytest.raises(StoppedError, match=rf"stopped as asked after step {step} of 12; the same run with"):
        trainer(recipe()).fit(tmp_path, asked_to_stop(number, step), ignore)
    assert signal.getsignal(number) == handler
    resumed, whole = trainer(recipe(), weights_seed=5), trainer(recipe())
    resumed.restore(newest_checkpoint(tmp_path).checkpoint)
    assert resumed.step == step
    for training in (resumed, whole):
        training.fit(tmp_path, ignore, ignore)
    assert [report.loss for report in resumed.history] == [report.loss for report in whole.history]
    assert resumed.model.state_dict()["head.weight"].equal(whole.model.state_dict()["head.weight"])


def test_a_stop_during_validation_leaves_the_validation_to_the_resumed_run(recipe, trainer, tmp_path, monkeypatch):
    training = trainer(recipe(epochs=1))
    batches = list(training._validation)

    class Stopping:
        def __iter__(self):
            signal.raise_signal(signal.SIGTERM)
            return iter(batches)

    monkeypatch.setattr(training, "_validation", Stopping())
    with pytest.raises(StoppedError):
        training.fit(tmp_path, ignore, ignore)
    checkpoint = newest_checkpoint(tmp_path).checkpoint
    assert (checkpoint.step, checkpoint.history) == (4, [])
    resumed = trainer(recipe(epochs=1))
    resumed.restore(checkpoint)
    resumed.fit(tmp_path, ignore, ignore)
    assert len(resumed.history) == 1
    assert (tmp_path / "best.pth").exists()


def test_a_stop_after_the_last_validation_is_not_lost(recipe, trainer, tmp_path):
    def stop_at_the_end(report) -> None:
        if report.epoch == 3:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(StoppedError, match="stopped as asked after step 12 of 12; the same run with `resume=True`"):
        trainer(recipe()).fit(tmp_path, ignore, stop_at_the_end)
    assert len(newest_checkpoint(tmp_path).checkpoint.history) == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_around_a_training_a_stop_is_an_error_at_once(number):
    handler = signal.getsignal(number)
    with stoppable():
        with listening(is_alone=True) as stop:
            signal.raise_signal(number)
        assert stop.requested
        with pytest.raises(StoppedError, match="stopped as asked; the same run with `resume=True` goes on"):
            signal.raise_signal(number)
    assert signal.getsignal(number) == handler


def test_a_second_interrupt_ends_at_once_but_not_under_torchrun():
    with listening(is_alone=True) as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with listening(is_alone=False) as stop:
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
        assert stop.requested


@pytest.fixture
def full_at(monkeypatch):
    """Let the disk be full, or another error arise, while the checkpoints of some steps are written."""

    def fill(*steps: int, number: int = errno.ENOSPC) -> None:
        write = Path.write_bytes

        def write_bytes(self: Path, content: bytes) -> int:
            if any(checkpoint_path(self.parent, step).name in self.name for step in steps):
                write(self, bytes(content)[:100])
                raise OSError(number, os.strerror(number))
            return write(self, content)

        monkeypatch.setattr(Path, "write_bytes", write_bytes)

    return fill


def test_a_full_disk_is_named_and_training_goes_on(recipe, trainer, tmp_path, full_at):
    full_at(6, 8)
    training, notices = trainer(recipe()), []
    training.fit(tmp_path, ignore, ignore, checkpoint_steps=2, keep=8, on_notice=notices.append)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["best.pth", *(f"checkpoint-{step:08d}.pth" for step in (2, 4, 10, 12))]
    assert len(notices) == 2
    for step, notice in zip((6, 8), notices, strict=True):
        assert f"the disk is full: no checkpoint of step {step} in {tmp_path}. Training goes on" in notice
        assert str(checkpoint_path(tmp_path, 4)) in notice
    assert len(training.history) == 3
    assert Checkpoint.load(checkpoint_path(tmp_path, 4)).step == 4


def test_another_error_of_the_disk_ends_the_run(recipe, trainer, tmp_path, full_at):
    full_at(4, number=errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        trainer(recipe()).fit(tmp_path, ignore, ignore)


def test_after_a_full_disk_a_nan_names_the_checkpoint_that_is_there(recipe, trainer, tmp_path, full_at):
    full_at(8)
    training = trainer(recipe())

    def poison(report) -> None:
        if report.step == 9:
            training.model.head.bias.data[0] = float("nan")

    with pytest.raises(DivergedError, match=r"step 10 of 12 .* Last good checkpoint: .*checkpoint-00000004\.pth"):
        training.fit(tmp_path, poison, ignore)


def test_what_is_on_the_disk_is_known(recipe, trainer, tmp_path, full_at):
    full_at(8, 12)
    training, notices = trainer(recipe()), []
    assert not training.is_saved
    training.fit(tmp_path, ignore, ignore, on_notice=notices.append)
    assert len(notices) == 2
    assert training.last_good == f"{checkpoint_path(tmp_path, 4)}, step 4 of 12"
    assert not training.is_saved
    resumed = trainer(recipe())
    newest = newest_checkpoint(tmp_path)
    resumed.restore(newest.checkpoint, newest.path)
    assert (resumed.last_good, resumed.is_saved) == (training.last_good, True)


def test_a_checkpoint_that_could_not_be_named_the_best_is_a_checkpoint(recipe, trainer, tmp_path, monkeypatch):
    def fail(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(loop, "mark_best", fail)
    training, notices = trainer(recipe(epochs=1)), []
    training.fit(tmp_path, ignore, ignore, on_notice=notices.append)
    path = checkpoint_path(tmp_path, 4)
    assert notices == [
        f"the disk is full: {path} is the best until now and could not be named best.pth too. Training goes on; last "
        f"good checkpoint: {path}, step 4 of 4"
    ]
    assert training.is_saved
    monkeypatch.undo()
    trainer(recipe(epochs=1)).restore(Checkpoint.load(path), path)
    assert Checkpoint.load(tmp_path / "best.pth").step == 4


def test_a_run_goes_on_from_the_best_where_the_last_ones_are_damaged(recipe, trainer, tmp_path):
    trainer(recipe()).fit(tmp_path, ignore, ignore, keep=1)
    best = Checkpoint.load(tmp_path / "best.pth").step
    assert best < 12, "the last epoch is the best, so the two are one file: choose another seed"
    checkpoint_path(tmp_path, 12).write_bytes(b"damaged")
    newest, resumed = newest_checkpoint(tmp_path), trainer(recipe(), weights_seed=5)
    resumed.restore(newest.checkpoint, newest.path)
    assert resumed.last_good == f"{tmp_path / 'best.pth'}, step {best} of 12"
    resumed.fit(tmp_path, ignore, ignore, keep=1)
    whole = trainer(recipe())
    (tmp_path / "whole").mkdir()
    whole.fit(tmp_path / "whole", ignore, ignore)
    assert resumed.model.state_dict()["head.weight"].equal(whole.model.state_dict()["head.weight"])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"optimizer": {}}, "is not of this training"),
        ({"optimizer": {"state": {99: {}}, "param_groups": []}}, "the moments of the optimizer are not of these"),
        (
            {"optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": []}},
            "do not have the shape of parameter 0",
        ),
        ({"optimizer": {"state": {0: 5}, "param_groups": []}}, "is not of this training"),
        ({"optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": []}}, "are not those of SGD"),
        (
            {"optimizer": {"state": {0: {"momentum_buffer": torch.ones(3) > 0}}, "param_groups": []}},
            "do not have the shape of parameter 0",
        ),
        ({"optimizer": {"state": {}, "param_groups": []}}, "the parameter groups of the optimizer are others"),
        ({"model": {}}, "is not of this training"),
        ({"model": {"head.weight": torch.ones(1)}}, "is not of this training"),
        ({"history": "many epochs"}, "it is at step 4000, and the training has 12"),
    ],
)
def test_a_checkpoint_that_is_not_of_the_training_is_passed_over(recipe, trainer, tmp_path, changes, reason):
    """Its types are right, so that only the training itself can tell."""
    trainer(recipe()).fit(tmp_path, ignore, ignore)
    last = checkpoint_path(tmp_path, 12)
    content = torch.load(last)
    if "history" in changes:
        changes = {"history": content["history"][:1] * 1000, "step": 4000}
    torch.save(content | changes, last)
    resumed = trainer(recipe(), weights_seed=5)
    newest = restore(resumed, newest_checkpoint(tmp_path), ONE)
    assert newest.path == checkpoint_path(tmp_path, 8)
    assert reason in newest.damaged[0]
    resumed.fit(tmp_path, ignore, ignore)
    whole = trainer(recipe())
    (tmp_path / "whole").mkdir()
    whole.fit(tmp_path / "whole", ignore, ignore)
    assert resumed.model.state_dict()["head.weight"].equal(whole.model.state_dict()["head.weight"])


def test_hyperparameters_of_a_checkpoint_are_not_believed(recipe, trainer, tmp_path):
    trainer(recipe()).fit(tmp_path, ignore, ignore)
    checkpoint = newest_checkpoint(tmp_path).checkpoint
    checkpoint.optimizer["param_groups"][0]["momentum"] = "a lot"
    resumed = trainer(recipe(epochs=4))
    resumed.restore(checkpoint)
    resumed.fit(tmp_path, ignore, ignore)
    assert len(resumed.history) == 4
