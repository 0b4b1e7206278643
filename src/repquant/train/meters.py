"""What a training counts as it goes: without waiting for the device, which would be idle meanwhile."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isfinite
from time import perf_counter

import torch
from torch import Tensor

from repquant.train.distributed import Ranks

SUMS = ("loss", "hits", "images", "seconds", "waiting")
"""What `Meter.totals` gives and `Meter.restore` takes."""


@dataclass
class Meter:
    """Sums over the steps of an epoch, of this rank.

    Attributes:
        device: where the sums are.
        images: trained on.
        seconds: since the epoch began, validation and checkpoints not included.
        waiting: of these, for images.
    """

    device: torch.device
    images: int = 0
    seconds: float = 0.0
    waiting: float = 0.0
    _sums: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self._sums = torch.zeros(2, dtype=torch.float64, device=self.device)

    def add(self, loss: Tensor, hits: Tensor, images: int) -> None:
        """Count a batch: its mean loss, how many images were right, and how many there were."""
        self._sums += torch.stack([loss.double() * images, hits.double()])
        self.images += images

    @contextmanager
    def wait(self) -> Iterator[None]:
        """Count the time of the block as waiting."""
        began = perf_counter()
        yield
        self.waiting += perf_counter() - began

    def totals(self, ranks: Ranks) -> dict[str, float]:
        """Loss, hits and images summed over all ranks, and the two times of this one. Collective."""
        images = self._sums.new_tensor([self.images])
        loss, hits, all_images = ranks.sum(torch.cat([self._sums, images])).tolist()
        return dict(zip(SUMS, (loss, hits, all_images, self.seconds, self.waiting), strict=True))

    def restore(self, totals: dict[str, float], ranks: Ranks) -> None:
        """Go on from the totals of all ranks: the main process takes over what they had."""
        self.seconds, self.waiting = totals["seconds"], totals["waiting"]
        if ranks.is_main:
            self._sums.copy_(torch.tensor([totals["loss"], totals["hits"]], dtype=torch.float64))
            self.images = int(totals["images"])


def steps_between_readings(device: torch.device, step_seconds: float) -> int:
    """After how many steps to look at their losses again, and at whether any rank was asked to stop.

    Each step on the CPU, where it costs nothing. A GPU has to wait meanwhile: every tenth there, but with slow steps
    about once a second, because torchrun kills ranks that have not stopped after 30 s.
    """
    return 1 if device.type == "cpu" else max(1, min(10, int(1 / step_seconds)))


class LossWatch:
    """The losses of the last steps, which stay on the device until several are read at once.

    Attributes:
        latest: loss that was read last; None before the first.
    """

    def __init__(self, device: torch.device) -> None:
        self.latest: float | None = None
        self._device = device
        self._pending: list[tuple[int, Tensor]] = []
        self._interval = 1
        self._began = perf_counter()

    @property
    def is_due(self) -> bool:
        """Whether to `read` now; the same in all ranks."""
        return len(self._pending) >= self._interval

    def add(self, step: int, loss: Tensor) -> None:
        """Keep this rank's mean loss of a step."""
        self._pending.append((step, loss))

    def read(self, ranks: Ranks, is_stopping: bool) -> tuple[int | None, float, bool]:
        """Look at the losses that were kept. Collective.

        Args:
            ranks: all of these have kept the losses of the same steps.
            is_stopping: whether this rank was asked to stop.

        Returns:
            the first step whose loss, the mean over the ranks, is not finite, or None; that loss, or the last one; and
            whether any rank was asked to stop.
        """
        steps = [step for step, _ in self._pending]
        losses = [loss.double() for _, loss in self._pending]
        self._pending = []
        if not losses:
            return None, self.latest or 0.0, is_stopping
        own = torch.stack(losses).cpu()  # waits for the device, so that its time counts
        others = own.new_tensor([is_stopping, perf_counter() - self._began])
        stop, seconds, *sums = ranks.sum(torch.cat([others, own]).to(self._device)).tolist()
        means = [value / ranks.world_size for value in sums]
        self.latest = means[-1]
        self._interval = steps_between_readings(self._device, seconds / ranks.world_size / len(steps))
        self._began = perf_counter()
        for step, loss in zip(steps, means, strict=True):
            if not isfinite(loss):
                return step, loss, stop > 0
        return None, means[-1], stop > 0
