import pytest
import torch

from repquant.train import meters
from repquant.train.distributed import ONE
from repquant.train.meters import LossWatch, steps_between_readings

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("device", "step_seconds", "steps"),
    [(CPU, 0.001, 1), (CPU, 5.0, 1), (GPU, 0.001, 10), (GPU, 0.1, 10), (GPU, 0.3, 3), (GPU, 5.0, 1)],
)
def test_losses_are_read_each_step_on_the_cpu_and_each_second_of_slow_steps_on_a_gpu(device, step_seconds, steps):
    assert steps_between_readings(device, step_seconds) == steps


def test_the_time_of_a_step_decides_when_losses_are_read(monkeypatch):
    asked = []

    def two_steps(device, step_seconds):
        asked.append((device, step_seconds))
        return 2

    monkeypatch.setattr(meters, "steps_between_readings", two_steps)
    watch, due = LossWatch(CPU), []
    for step in range(5):
        watch.add(step, torch.tensor(float(step)))
        due.append(watch.is_due)
        if watch.is_due:
            assert watch.read(ONE, is_stopping=False) == (None, step, False)
    assert due == [True, False, True, False, True]
    assert [device for device, _ in asked] == [CPU] * 3
    assert all(0 < seconds < 60 for _, seconds in asked)


def test_the_first_loss_that_is_not_finite_is_named():
    watch = LossWatch(CPU)
    for step, loss in enumerate((1.0, float("inf"), float("nan"))):
        watch.add(step, torch.tensor(loss))
    assert watch.read(ONE, is_stopping=True) == (1, float("inf"), True)
