from pathlib import Path

from repquant.cli.training import _tell_resumed, summary
from repquant.train.checkpoint import Checkpoint, Newest
from repquant.train.distributed import Ranks
from repquant.train.recipe import Recipe
from repquant.train.reports import EpochReport


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


def test_the_best_checkpoint_is_named_where_there_is_one(tmp_path):
    """On a full disk there may be none."""
    figures = {"loss": 1.0, "train_top1": 40.0, "train_seconds": 60.0, "images_per_second": 9.0, "data_percent": 5.0}
    history = [EpochReport(epoch=1, learning_rate=0.1, val_top1=50.0, **figures)]
    assert summary(history, tmp_path).endswith("50.00 % after epoch 1")
    (tmp_path / "best.pth").touch()
    assert summary(history, tmp_path).endswith(f"50.00 % after epoch 1 ({tmp_path / 'best.pth'})")
