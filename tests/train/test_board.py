import sys
import threading

import pytest

from repquant.errors import InputError
from repquant.train.board import Board
from repquant.train.reports import EpochReport, StepReport

EPOCH = EpochReport(
    epoch=1,
    learning_rate=0.1,
    loss=1.5,
    train_top1=40.0,
    val_top1=50.0,
    train_seconds=1.0,
    images_per_second=8.0,
    data_percent=3.0,
)


def step(number: int, loss: float | None = 0.5) -> StepReport:
    return StepReport(step=number, images=8, loss=loss, learning_rate=0.1, data_percent=3.0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of TensorBoard's own imports
def test_curves_are_written_over_the_steps(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = Board(tmp_path, 0, pytest.fail)
    for number in range(1, 21):
        board.add_step(step(number, loss=number / 10))
    board.add_epoch(EPOCH)
    board.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("step/loss")] == [(10, 1.0), (20, 2.0)]
    assert [(event.step, event.value) for event in events.Scalars("epoch/val_top1")] == [(20, 50.0)]


def test_without_tensorboard_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match=r"`tensorboard` needs TensorBoard; pip install 'repquant\[train\]'"):
        Board(tmp_path, 0, pytest.fail)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_on_a_full_disk_the_curves_end_and_the_training_goes_on(tmp_path, monkeypatch):
    from tensorboard.summary.writer.record_writer import RecordWriter

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(threading, "excepthook", lambda _: None)  # for TensorBoard's thread that writes
    others = set(threading.enumerate())
    notices: list[str] = []
    board = Board(tmp_path, 0, notices.append)
    board.add_step(step(10))
    monkeypatch.setattr(RecordWriter, "write", fail)
    for number in range(11, 201):
        board.add_step(step(number))
    board.add_epoch(EPOCH)
    board.close()
    for thread in set(threading.enumerate()) - others:
        thread.join()
    (notice,) = notices
    assert f"TensorBoard can't write to {tmp_path} ([Errno 28] No space left on device): its curves end" in notice
    assert notice.endswith("Training goes on")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_folder_that_can_not_be_made_is_done_without(tmp_path):
    (tmp_path / "file").touch()
    notices: list[str] = []
    board = Board(tmp_path / "file" / "tensorboard", 0, notices.append)
    board.add_step(step(10))
    board.add_epoch(EPOCH)
    board.close()
    assert len(notices) == 1
