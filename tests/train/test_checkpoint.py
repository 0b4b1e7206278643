import pickle
from pathlib import Path

import pytest
import torch
import yaml

from repquant.errors import InputError
from repquant.train.checkpoint import KEPT, Checkpoint, checkpoint_path, newest_checkpoint, open_run
from repquant.train.recipe import Recipe


def checkpoint(epochs: int) -> Checkpoint:
    return Checkpoint(
        steps_per_epoch=4,
        model={"weight": torch.full((1000,), float(epochs))},
        optimizer={"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]},
        random_states={"cpu": torch.get_rng_state()},
        history=[{"epoch": epoch + 1, "loss": 0.5} for epoch in range(epochs)],
    )


@pytest.fixture
def run(tmp_path) -> Path:
    """The folder of a run with three epochs done."""
    for epochs in (1, 2, 3):
        checkpoint(epochs).save(tmp_path)
    return tmp_path


def test_what_is_saved_is_loaded(run):
    saved, loaded = checkpoint(3), Checkpoint.load(checkpoint_path(run, 3))
    assert torch.equal(loaded.model["weight"], saved.model["weight"])
    assert torch.equal(loaded.optimizer["state"][0]["momentum_buffer"], torch.ones(3))
    assert torch.equal(loaded.random_states["cpu"], saved.random_states["cpu"])
    assert (loaded.history, loaded.steps_per_epoch) == (saved.history, 4)


def test_the_last_ones_are_kept(run):
    assert KEPT == 2
    assert sorted(path.name for path in run.iterdir()) == ["checkpoint-0002.pth", "checkpoint-0003.pth"]


def test_the_newest_is_taken(run):
    newest = newest_checkpoint(run)
    assert len(newest.checkpoint.history) == 3
    assert newest.damaged == ()


def test_without_a_checkpoint_there_is_none(tmp_path):
    newest = newest_checkpoint(tmp_path)
    assert (newest.checkpoint, newest.damaged) == (None, ())


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit_of_a_weight(path: Path) -> None:
    content = bytearray(path.read_bytes())
    position = content.index(torch.full((1000,), 3.0).numpy().tobytes())
    content[position + 2000] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def drop_an_entry(path: Path) -> None:
    content = vars(checkpoint(3)).copy()
    del content["optimizer"]
    torch.save(content, path)


@pytest.mark.parametrize("damage", [truncate, flip_a_bit_of_a_weight, empty, drop_an_entry])
def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(run, damage):
    damage(checkpoint_path(run, 3))
    newest = newest_checkpoint(run)
    assert len(newest.checkpoint.history) == 2
    (reason,) = newest.damaged
    assert "checkpoint-0003.pth is damaged" in reason


class Payload:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self):
        return Path.touch, (self.witness,)


def test_nothing_in_a_checkpoint_is_run(run, tmp_path):
    witness = tmp_path / "was-run"
    torch.save({"model": Payload(witness)}, checkpoint_path(run, 3))
    newest = newest_checkpoint(run)
    assert len(newest.checkpoint.history) == 2
    assert not witness.exists()
    pickle.loads(pickle.dumps(Payload(witness)))
    assert witness.exists()  # it would have been


def test_when_all_are_damaged(run):
    for epoch in (2, 3):
        truncate(checkpoint_path(run, epoch))
    with pytest.raises(InputError, match=r"(?s)no checkpoint in .*0003\.pth.*0002\.pth.*Remove them to start from the"):
        newest_checkpoint(run)


def test_a_full_disk_leaves_the_checkpoint_before(run, monkeypatch):
    def write_bytes(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    before = sorted((path.name, path.stat().st_size) for path in run.iterdir())
    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    with pytest.raises(OSError, match="No space left"):
        checkpoint(4).save(run)
    assert sorted((path.name, path.stat().st_size) for path in run.iterdir()) == before


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
    with pytest.raises(InputError, match="is not empty; pass --resume to go on with the run in it"):
        open_run(tmp_path, recipe(), resume=False)
    open_run(tmp_path, recipe(), resume=True)


def test_resume_begins_a_run_that_was_killed_before_it_wrote_anything(tmp_path, recipe):
    open_run(tmp_path / "new", recipe(), resume=True)
    assert (tmp_path / "new" / "recipe.yaml").exists()


def test_another_recipe_is_refused_and_the_differences_named(tmp_path, recipe):
    open_run(tmp_path, recipe(arch="RepVGG-A0", epochs=3), resume=False)
    with pytest.raises(
        InputError, match=r"another recipe: arch was RepVGG-A0 and is RepVGG-A1 now; epochs was 3 and is 4 now\. Resume"
    ):
        open_run(tmp_path, recipe(arch="RepVGG-A1", epochs=4), resume=True)


def test_a_setting_that_an_older_version_did_not_know_is_a_difference(tmp_path, recipe):
    open_run(tmp_path, recipe(), resume=False)
    file = tmp_path / "recipe.yaml"
    file.write_text(file.read_text().replace("momentum: 0.9\n", ""))
    with pytest.raises(InputError, match=r"momentum was None and is 0\.9 now"):
        open_run(tmp_path, recipe(), resume=True)


@pytest.mark.parametrize(("content", "message"), [("a: [", "can't read .*recipe.yaml"), ("5", "is not the recipe")])
def test_a_damaged_recipe_is_refused(tmp_path, recipe, content, message):
    (tmp_path / "recipe.yaml").write_text(content)
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


def test_half_a_checkpoint_of_a_killed_process_is_removed(tmp_path, recipe):
    open_run(tmp_path, recipe(), resume=False)
    (tmp_path / ".checkpoint-0001.pth.x81k.pth").write_bytes(b"half")
    open_run(tmp_path, recipe(), resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]
