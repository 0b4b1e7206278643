import errno
import os
import pickle
import signal
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
import yaml

from repquant.errors import InputError
from repquant.models import torch_file
from repquant.train.checkpoint import (
    Checkpoint,
    Newest,
    checkpoint_path,
    is_disk_full,
    mark_best,
    newest_checkpoint,
    open_run,
)
from repquant.train.recipe import Recipe
from repquant.train.reports import EpochReport
from repquant.train.stopping import StoppedError, stoppable


def checkpoint(step: int, val_top1: float = 50.0) -> Checkpoint:
    """Of a run with four steps an epoch, which all had this accuracy."""
    return Checkpoint(
        step=step,
        steps_per_epoch=4,
        world_size=1,
        model={"weight": torch.full((1000,), float(step))},
        average=None,
        optimizer={"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]},
        scaler={},
        sums={"loss": 1.5, "hits": 3.0, "images": 8.0, "seconds": 0.1, "waiting": 0.0},
        history=[report(epoch + 1, val_top1) for epoch in range(step // 4)],
    )


def report(epoch: int, val_top1: float) -> dict[str, float]:
    zeros = dict.fromkeys((field.name for field in fields(EpochReport)), 0.0)
    return zeros | {"epoch": epoch, "loss": 0.5, "val_top1": val_top1}


def save(each: Checkpoint, folder: Path, keep: int) -> None:
    """As a training does."""
    path = each.save(folder, keep)
    if each.is_best:
        mark_best(path)


@pytest.fixture
def run(tmp_path) -> Path:
    """The folder of a run with three checkpoints after its first epoch."""
    for step in (4, 5, 6):
        save(checkpoint(step), tmp_path, keep=2)
    return tmp_path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_is_loaded(run):
    saved, loaded = checkpoint(6), Checkpoint.load(checkpoint_path(run, 6))
    assert torch.equal(loaded.model["weight"], saved.model["weight"])
    assert torch.equal(loaded.optimizer["state"][0]["momentum_buffer"], torch.ones(3))
    assert (loaded.history, loaded.sums, loaded.step) == (saved.history, saved.sums, 6)


def test_the_last_ones_and_the_best_are_kept(run):
    assert names(run) == ["best.pth", "checkpoint-00000005.pth", "checkpoint-00000006.pth"]
    assert Checkpoint.load(run / "best.pth").step == 4


@pytest.mark.parametrize(("second", "best"), [(51.0, 8), (50.0, 4), (49.0, 4)])
def test_the_best_is_the_first_epoch_with_the_highest_accuracy(tmp_path, second, best):
    first, after = checkpoint(4), checkpoint(8)
    after.history[-1]["val_top1"] = second
    for each in (first, after):
        save(each, tmp_path, keep=1)
    assert names(tmp_path) == ["best.pth", "checkpoint-00000008.pth"]
    assert Checkpoint.load(tmp_path / "best.pth").step == best


def test_an_epoch_that_was_not_validated_yet_is_not_the_best():
    assert checkpoint(4).is_best
    assert not replace(checkpoint(4), history=[]).is_best
    assert not checkpoint(5).is_best


def test_without_links_the_best_is_a_copy(run, monkeypatch):
    def link(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    mark_best(checkpoint(8).save(run, keep=2))
    assert Checkpoint.load(run / "best.pth").step == 8


def test_checkpoints_of_later_steps_go_when_the_run_went_back(run):
    """They were damaged, or the run would have gone on from them."""
    truncate(checkpoint_path(run, 6))
    checkpoint(5).save(run, keep=2)
    assert names(run) == ["best.pth", "checkpoint-00000005.pth"]


def test_the_newest_is_taken(run):
    newest = newest_checkpoint(run)
    assert newest.checkpoint.step == 6
    assert newest.path == checkpoint_path(run, 6)
    assert newest.damaged == ()


def test_without_a_checkpoint_there_is_none(tmp_path):
    newest = newest_checkpoint(tmp_path)
    assert newest == Newest(None, None, ())


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit_of_a_weight(path: Path) -> None:
    content = bytearray(path.read_bytes())
    position = content.index(torch.full((1000,), 6.0).numpy().tobytes())
    content[position + 2000] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def drop_an_entry(path: Path) -> None:
    content = vars(checkpoint(6)).copy()
    del content["optimizer"]
    torch.save(content, path)


@pytest.mark.parametrize("damage", [truncate, flip_a_bit_of_a_weight, empty, drop_an_entry])
def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(run, damage):
    damage(checkpoint_path(run, 6))
    newest = newest_checkpoint(run)
    assert newest.checkpoint.step == 5
    (reason,) = newest.damaged
    assert "checkpoint-00000006.pth is damaged" in reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"step": 10**9}, "after 1 epochs of 4 steps it can't be at step 1000000000"),
        ({"step": 6.5}, "its step can't be"),
        ({"step": True}, "its step can't be"),
        ({"steps_per_epoch": 0}, "its steps_per_epoch can't be"),
        ({"world_size": "2"}, "its world_size can't be"),
        ({"model": [1]}, "its model can't be"),
        ({"model": {"weight": 1.0}}, "its model can't be"),
        ({"average": 3}, "its average can't be"),
        ({"optimizer": None}, "its optimizer can't be"),
        ({"scaler": 1, "sums": {}}, "its scaler and sums can't be"),
        ({"sums": {"loss": float("nan"), "hits": 3.0, "images": 8.0, "seconds": 0.1, "waiting": 0.0}}, "its sums"),
        ({"sums": {"loss": 1.0, "hits": 3.0, "images": 0, "seconds": 0.1, "waiting": 0.0}}, "no images of them"),
        ({"history": 3}, "its history can't be"),
        ({"history": [{}]}, "its history can't be"),
        ({"extra": 3}, "it has other entries than average, history, model"),
    ],
)
def test_a_well_formed_file_that_is_no_state_of_a_training(run, changes, reason):
    torch.save(vars(checkpoint(6)) | changes, checkpoint_path(run, 6))
    newest = newest_checkpoint(run)
    assert newest.checkpoint.step == 5
    assert reason in newest.damaged[0]


class Payload:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self):
        return Path.touch, (self.witness,)


def test_nothing_in_a_checkpoint_is_run(run, tmp_path):
    witness = tmp_path / "was-run"
    torch.save({"model": Payload(witness)}, checkpoint_path(run, 6))
    newest = newest_checkpoint(run)
    assert newest.checkpoint.step == 5
    assert not witness.exists()
    pickle.loads(pickle.dumps(Payload(witness)))
    assert witness.exists()  # it would have been


def test_when_the_last_ones_are_damaged_the_best_is_taken(run):
    for step in (5, 6):
        truncate(checkpoint_path(run, step))
    newest = newest_checkpoint(run)
    assert newest.checkpoint.step == 4
    assert newest.path == run / "best.pth"
    assert len(newest.damaged) == 2


def test_when_all_are_damaged(run):
    for path in run.iterdir():
        truncate(path)
    with pytest.raises(
        InputError, match=r"(?s)no checkpoint in .*06\.pth.*05\.pth.*best\.pth.*Remove them to start from the"
    ):
        newest_checkpoint(run)


def test_a_stop_while_a_checkpoint_is_read_does_not_make_it_damaged(run, monkeypatch):
    monkeypatch.setattr(torch_file, "open_regular", lambda *_: signal.raise_signal(signal.SIGTERM))
    with stoppable(), pytest.raises(StoppedError):
        newest_checkpoint(run)


def test_a_full_disk_leaves_the_checkpoint_before(run, monkeypatch):
    def write_bytes(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    before = sorted((path.name, path.stat().st_size) for path in run.iterdir())
    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    with pytest.raises(OSError, match="No space left") as caught:
        checkpoint(8).save(run, keep=2)
    assert is_disk_full(caught.value)
    assert sorted((path.name, path.stat().st_size) for path in run.iterdir()) == before


@pytest.mark.parametrize(("number", "expected"), [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EACCES, False)])
def test_a_disk_without_room_for_a_file_name_is_full_too(run, monkeypatch, number, expected):
    def mkstemp(**_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("tempfile.mkstemp", mkstemp)
    with pytest.raises(InputError) as caught:
        checkpoint(8).save(run, keep=2)
    assert is_disk_full(caught.value) is expected


def test_a_new_run_leaves_its_recipe(tmp_path, recipe):
    folder = tmp_path / "runs" / "first"
    open_run(folder, recipe(weight_decay=5e-5), resume=False)
    written = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert Recipe(**written | {"mean": tuple(written["mean"]), "std": tuple(written["std"])}) == recipe(
        weight_decay=5e-5
    )


def test_an_empty_folder_is_as_good_as_none(tmp_path, recipe):
    open_run(tmp_path, recipe(), resume=False)
    assert (tmp_path / "recipe.yaml").exists()


def test_a_folder_with_a_run_needs_resume(tmp_path, recipe):
    open_run(tmp_path, recipe(), resume=False)
    checkpoint(4).save(tmp_path, keep=1)
    (tmp_path / ".my.onnx.backup").touch()  # nothing is removed from a folder that is refused
    with pytest.raises(InputError, match="is not empty; pass `resume=True` to go on with its run"):
        open_run(tmp_path, recipe(), resume=False)
    assert (tmp_path / ".my.onnx.backup").exists()
    open_run(tmp_path, recipe(), resume=True)


def test_resume_begins_a_run_that_was_killed_before_it_wrote_anything(tmp_path, recipe):
    open_run(tmp_path / "new", recipe(), resume=True)
    assert names(tmp_path / "new") == ["recipe.yaml"]


def test_resume_begins_a_run_that_was_killed_while_it_wrote_the_recipe(tmp_path, recipe):
    (tmp_path / ".recipe.yaml.h4lf.yaml").write_text("arch: Rep")
    open_run(tmp_path, recipe(), resume=True)
    assert names(tmp_path) == ["recipe.yaml"]


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_failed_before_its_first_checkpoint_leaves_a_new_folder(tmp_path, recipe, resume):
    open_run(tmp_path, recipe(epochs=3), resume=False)
    open_run(tmp_path, recipe(epochs=4), resume=resume)
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text())["epochs"] == 4


def test_another_recipe_is_refused_and_the_differences_named(tmp_path, recipe):
    open_run(tmp_path, recipe(arch="RepVGG-A0", epochs=3), resume=False)
    checkpoint(4).save(tmp_path, keep=1)
    with pytest.raises(
        InputError, match=r"another recipe: epochs was 3 and is 4 now; arch was RepVGG-A0 and is RepVGG-A1 now\. Resume"
    ):
        open_run(tmp_path, recipe(arch="RepVGG-A1", epochs=4), resume=True)


def test_a_setting_that_an_older_version_did_not_know_is_a_difference(tmp_path, recipe):
    open_run(tmp_path, recipe(), resume=False)
    checkpoint(4).save(tmp_path, keep=1)
    file = tmp_path / "recipe.yaml"
    file.write_text(file.read_text().replace("momentum: 0.9\n", ""))
    with pytest.raises(InputError, match=r"momentum was None and is 0\.9 now"):
        open_run(tmp_path, recipe(), resume=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [", "can't read .*recipe.yaml"),
        ("5", "is not the recipe"),
        ("a: &a {x: 1}\nb: &b {<<: [*a, *a]}", "recipe.yaml refers to other parts of itself"),
        ("a: " + "[" * 9, "recipe.yaml is nested too deeply"),
        (f"epochs: 0x{'f' * 9000}", "epochs was a number of thousands of digits and is"),
        (f"epochs: {'x' * 9000}", r"epochs was x{120}\.\.\. \(9,000 characters\) and is"),
        ('"\\e[31m": 1', r"recipe: \\x1b\[31m was 1 and is None now"),
    ],
)
def test_a_damaged_recipe_is_refused(tmp_path, recipe, content, message):
    (tmp_path / "recipe.yaml").write_text(content)
    checkpoint(4).save(tmp_path, keep=1)
    with pytest.raises(InputError, match=message):
        open_run(tmp_path, recipe(), resume=True)


def test_what_is_no_run_is_left_alone(tmp_path, recipe):
    file = tmp_path / "thesis.txt"
    file.write_text("years of work")
    with pytest.raises(InputError, match="holds no run to resume"):
        open_run(tmp_path, recipe(), resume=True)
    with pytest.raises(InputError, match="is a file; give a folder"):
        open_run(file, recipe(), resume=False)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_half_a_file_of_a_killed_process_is_removed(tmp_path, recipe):
    open_run(tmp_path, recipe(), resume=False)
    for name in (
        ".checkpoint-00000001.pth.x81k.pth",
        ".best.pth.71x9.pth",
        ".model.safetensors._1ab.safetensors",
        ".result.json.k2_5.json",
        ".mse.onnx.33zz.onnx",
        ".notes.txt",
    ):
        (tmp_path / name).write_bytes(b"half")
    open_run(tmp_path, recipe(), resume=True)
    assert names(tmp_path) == [".notes.txt", "recipe.yaml"]
