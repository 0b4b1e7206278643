"""A thousand damaged checkpoints: nothing in them runs, nothing hangs, and every refusal says which file and why."""

import os
import random
import resource
import sys
import time
import zipfile
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from repquant.errors import InputError
from repquant.models.checkpoints import load_tensors, save_model
from repquant.models.network import build
from repquant.train.checkpoint import Checkpoint
from repquant.train.reports import EpochReport

MUTATIONS = 1000
_LONGEST_SECONDS, _MOST_BYTES = 20, 2**30
_STARTS_A_PROGRAM = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect", "os.fork")

_started: list[str] = []


def watch(event: str, _arguments: object) -> None:
    if event in _STARTS_A_PROGRAM:
        _started.append(event)


def flip(content: bytearray, dice: random.Random) -> None:
    for _ in range(dice.choice((1, 1, 3, 20))):
        content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)


def replace(content: bytearray, dice: random.Random) -> None:
    start = dice.randrange(len(content))
    content[start : start + dice.randrange(1, 40)] = dice.randbytes(dice.randrange(40))


def cut(content: bytearray, dice: random.Random) -> None:
    del content[dice.randrange(len(content)) :]


def repeat(content: bytearray, dice: random.Random) -> None:
    start, length = dice.randrange(len(content)), dice.randrange(1, 400)
    place = dice.randrange(len(content))
    content[place:place] = content[start : start + length] * dice.choice((1, 2, 50))


def large_numbers(content: bytearray, dice: random.Random) -> None:
    place = dice.randrange(len(content))
    content[place : place + 8] = b"\xff" * dice.choice((1, 2, 4, 8))


MUTATE = (flip, replace, cut, repeat, large_numbers)


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
def test_damaged_checkpoints(samples, tmp_path, capsys):
    sys.addaudithook(watch)
    _started.clear()
    dice, counts = random.Random(0), {"mutations": 0, "refusals": 0, "accepted": 0, "failures": 0}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    slowest = 0.0
    for _ in range(MUTATIONS):
        sample = dice.choice(samples)
        if zipfile.is_zipfile(sample) and dice.random() < 0.5:
            content = bytearray(mutated_pickle(sample, dice))
        else:
            content = bytearray(sample.read_bytes())
            dice.choice(MUTATE)(content, dice)
        path = tmp_path / "damaged" / sample.name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        load = Checkpoint.load if "checkpoint" in path.name else load_tensors
        counts["mutations"] += 1
        began = time.perf_counter()
        try:
            load(path)
        except InputError as error:
            counts["refusals"] += 1
            message = str(error)
            assert str(path) in message
            assert len(message) - len(str(path)) > 20
            assert len(message) < 2000
        except BaseException as error:
            counts["failures"] += 1
            print(path, repr(error)[:1000])
        else:
            counts["accepted"] += 1
        slowest = max(slowest, time.perf_counter() - began)
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    with capsys.disabled():
        print(f"\ncheckpoints: {counts}, slowest {slowest:.2f} s, memory grown by {grown / 2**20:.0f} MiB")
    assert not _started
    assert counts["failures"] == 0
    assert counts["refusals"] > MUTATIONS / 2
    assert slowest < _LONGEST_SECONDS
    assert grown < _MOST_BYTES
    assert not os.path.lexists("executed")
