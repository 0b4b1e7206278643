"""What a training counts as it goes: without waiting for the device, which would be idle meanwhile."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isfinite
from time import perf_counter

import torch
from torch import Tensor

from repquant.train.distributed import Ranks


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
        return {
            "loss": loss,
            "hits": hits,
            "images": all_images,
            "seconds": self.seconds,
            "waiting": self.waiting,
        }

    def restore(self, totals: dict[str, float], ranks: Ranks) -> None:
        """Go on from the totals of all ranks: the main process takes over what they had."""
        self.seconds, self.waiting = totals["seconds"], totals["waiting"]
        if ranks.is_main:
            self._sums.copy_(torch.tensor([totals["loss"], totals["hits"]], dtype=torch.float64))
            self.images = int(totals["images"])


class LossWatch:
    """The losses of the last steps, which stay on the device until several are read at once."""

    def __init__(self) -> None:
        self.latest: float | None = None
        self._pending: list[tuple[int, Tensor]] = []

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
        flag = losses[0].new_tensor(float(is_stopping))
        stop, *sums = ranks.sum(torch.stack([flag, *losses])).tolist()
        means = [value / ranks.world_size for value in sums]
        self.latest = means[-1]
        for step, loss in zip(steps, means, strict=True):
            if not isfinite(loss):
                return step, loss, stop > 0
        return None, means[-1], stop > 0
