from pathlib import Path

from repquant.cli.training import _tell_resumed
from repquant.train.checkpoint import Checkpoint, Newest
from repquant.train.distributed import Ranks
from repquant.train.recipe import Recipe


def test_another_number_of_processes_is_said(capsys):
    checkpoint = Checkpoint(
        step=3,
        steps_per_epoch=4,
        world_size=2,
        model={},
        average=None,
        optimizer={},
        scaler={},
        sums={},
        history=[],
    )
    newest = Newest(checkpoint, Path("checkpoint-00000003.pth"), ())
    _tell_resumed(newest, Recipe(arch="RepVGG-tiny", sync_bn=False), Ranks())
    said = capsys.readouterr().err
    assert "the run was on 2 processes and is on 1 now: each step has the same images" in said
    assert "batch statistics are of parts of another size" in said
    assert "mixup" not in said
    _tell_resumed(newest, Recipe(arch="RepVGG-tiny", randaugment="n2m9"), Ranks())
    said = capsys.readouterr().err
    assert "mixup, CutMix and RandAugment draw otherwise" in said
    assert "batch statistics" not in said
    _tell_resumed(newest, Recipe(arch="RepVGG-tiny"), Ranks(world_size=2))
    assert "processes" not in capsys.readouterr().err
