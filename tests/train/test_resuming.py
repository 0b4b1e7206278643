"""What a run that goes on, and one that is done, say of themselves."""

from pathlib import Path

from repquant.train.checkpoint import Checkpoint, Newest
from repquant.train.distributed import Ranks
from repquant.train.recipe import Recipe
from repquant.train.reports import EpochReport, summary
from repquant.train.resuming import resumed_lines


def test_another_number_of_processes_is_said():
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
    said = "".join(resumed_lines(newest, Recipe(arch="RepVGG-tiny", sync_bn=False), Ranks()))
    assert "the run was on 2 processes and is on 1 now: each step has the same images" in said
    assert "batch statistics are of parts of another size" in said
    assert "mixup" not in said
    said = "".join(resumed_lines(newest, Recipe(arch="RepVGG-tiny", randaugment="n2m9"), Ranks()))
    assert "mixup, CutMix and RandAugment draw otherwise" in said
    assert "batch statistics" not in said
    assert "processes" not in "".join(resumed_lines(newest, Recipe(arch="RepVGG-tiny"), Ranks(world_size=2)))


def test_the_best_checkpoint_is_named_where_there_is_one(tmp_path):
    """On a full disk there may be none."""
    figures = {"loss": 1.0, "train_top1": 40.0, "train_seconds": 60.0, "images_per_second": 9.0, "data_percent": 5.0}
    history = [EpochReport(epoch=1, learning_rate=0.1, val_top1=50.0, **figures)]
    best = tmp_path / "best.pth"
    assert summary(history, best).endswith("50.00 % after epoch 1")
    best.touch()
    assert summary(history, best).endswith(f"50.00 % after epoch 1 ({best})")
