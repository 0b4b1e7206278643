"""A thousand damaged checkpoints: nothing in them runs, nothing hangs, and every refusal says which file and why."""

import random
import zipfile
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from mutations import MUTATE, Tries, mutated
from repquant.models.checkpoints import load_tensors, save_model
from repquant.models.network import build
from repquant.train.checkpoint import Checkpoint
from repquant.train.reports import EpochReport

MUTATIONS = 1000


def mutated_pickle(path: Path, dice: random.Random) -> bytes:
    """Change the pickle in an archive and write the archive anew: its checksums are right."""
    with zipfile.ZipFile(path) as source:
        members = {name: bytearray(source.read(name)) for name in source.namelist()}
    (name,) = (name for name in members if name.endswith("data.pkl"))
    dice.choice(MUTATE)(members[name], dice)
    changed = path.with_name("changed.zip")
    with zipfile.ZipFile(changed, "w") as target:
        for member, content in members.items():
            target.writestr(member, bytes(content))
    return changed.read_bytes()


@pytest.fixture
def samples(tmp_path) -> list[Path]:
    model = build("RepVGG-tiny", 2)
    paths = [
        tmp_path / "w.pth",
        tmp_path / "w.safetensors",
        tmp_path / "legacy.pth",
        tmp_path / "checkpoint-00000004.pth",
    ]
    save_model(model, paths[0])
    save_model(model, paths[1])
    torch.save(model.state_dict(), paths[2], _use_new_zipfile_serialization=False)
    report = dict.fromkeys((field.name for field in fields(EpochReport)), 0.0)
    Checkpoint(
        step=4,
        steps_per_epoch=4,
        world_size=1,
        model=model.state_dict(),
        average=None,
        optimizer={"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        scaler={},
        sums=dict.fromkeys(("loss", "hits", "images", "seconds", "waiting"), 0.0),
        history=[report],
    ).save(tmp_path, keep=1)
    return paths


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_damaged_checkpoints(samples, tmp_path, record_property):
    dice, tries = random.Random(0), Tries()
    record_property("counts", tries.counts)
    (tmp_path / "damaged").mkdir()
    for _ in range(MUTATIONS):
        sample = dice.choice(samples)
        is_inside = zipfile.is_zipfile(sample) and dice.random() < 0.5
        path = tmp_path / "damaged" / sample.name
        path.write_bytes(mutated_pickle(sample, dice) if is_inside else mutated(sample.read_bytes(), dice))
        load = Checkpoint.load if "checkpoint" in path.name else load_tensors
        tries.read(lambda load=load, path=path: load(path), str(path))
    tries.require_none_failed()
    assert tries.counts["refusals"] > MUTATIONS / 2
