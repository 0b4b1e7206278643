"""The processes that train one network together: torch's own engine, started by torchrun.

Each process ("rank") takes its part of every batch; torch's DistributedDataParallel averages the gradients.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from repquant.errors import InputError

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among those that work together; by default it is alone.

    Every method with a collective must be called by all ranks, in the same order.

    Attributes:
        rank: 0 to world_size - 1; rank 0 is the main process, which alone writes files and speaks.
        world_size: how many there are, on all machines.
        local_rank: as rank, on this machine.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over all ranks; a tensor on the device that is trained on. Collective."""
        if self.world_size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def from_main(self, function: Callable[[], T]) -> T:
        """Call a function in the main process alone, and return its result in all. Collective."""
        if self.world_size == 1:
            return function()
        result = [function() if self.is_main else None]
        dist.broadcast_object_list(result)
        return result[0]  # type: ignore[return-value]

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks, in their order. Collective."""
        if self.world_size == 1:
            return [value]
        values: list[T] = [value] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def share_buffers(self, model: nn.Module) -> None:
        """Give all ranks the buffers of the main process: statistics of its own batches, for example. Collective."""
        if self.world_size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)

    def part(self, items: Sequence[int]) -> Sequence[int]:
        """This rank's contiguous part of a sequence; lengths differ by one at most.

        Raises:
            InputError: there are fewer items than ranks.
        """
        if len(items) < self.world_size:
            raise InputError(f"{len(items)} images can't be shared by {self.world_size} processes; start fewer")
        first, end = (len(items) * rank // self.world_size for rank in (self.rank, self.rank + 1))
        return items[first:end]


ONE = Ranks()
"""One process alone."""


@contextmanager
def started_by_torchrun(device: str, patience_hours: float | None = None) -> Iterator[tuple[Ranks, torch.device]]:
    """Join the other processes that torchrun started, for the time of the block; without torchrun there are none.

    Yields:
        this process among all, and the device that is its own.

    Args:
        device: "cpu" (they talk by gloo) or "cuda" (by NCCL).
        patience_hours: how long a process waits for the others, where the main one has more to do; None for torch's own
            10 minutes (NCCL) or 30 (gloo). Where a process has died, torchrun ends the others at once.

    Raises:
        InputError: another device, PyTorch finds no GPU, or fewer than there are processes on this machine.
    """
    ranks = Ranks(
        rank=int(os.environ.get("RANK", "0")),
        world_size=int(os.environ.get("WORLD_SIZE", "1")),
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
    )
    own = open_device(device, ranks)
    if ranks.world_size == 1:
        yield ranks, own
        return
    timeout = None if patience_hours is None else timedelta(hours=patience_hours)
    dist.init_process_group("nccl" if own.type == "cuda" else "gloo", timeout=timeout)
    yield ranks, own
    dist.destroy_process_group()  # not after an error: it would wait for the others, which torchrun ends


def open_device(name: str, ranks: Ranks = ONE) -> torch.device:
    """Return the device of this process: the CPU, or the GPU with the number of its local rank.

    Raises:
        InputError: another name, PyTorch finds no GPU, or fewer than there are processes on this machine.
    """
    if name not in ("cpu", "cuda"):
        raise InputError(f"device {name!r} was given; allowed are cpu and cuda")
    if name == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise InputError(
            '`device="cuda"` was given, and PyTorch finds no GPU here; pass `device="cpu"`, or install a build'
        )
    if ranks.local_rank >= torch.cuda.device_count():
        raise InputError(
            f"process {ranks.local_rank + 1} of this machine has no GPU: there are {torch.cuda.device_count()}; "
            f"pass --nproc-per-node {torch.cuda.device_count()} to torchrun"
        )
    device = torch.device("cuda", ranks.local_rank)
    torch.cuda.set_device(device)
    return device


def distribute(model: nn.Module, device: torch.device, ranks: Ranks, *, share_buffers: bool) -> nn.Module:
    """Wrap a model so that its gradients are averaged over the ranks; return the model itself for one.

    Args:
        model: all ranks start with the weights and buffers of the main process.
        device: where it is.
        ranks: those that train it.
        share_buffers: whether each pass begins with the buffers of the main process; where batch statistics are
            synchronized, all ranks have the same without.
    """
    if ranks.world_size == 1:
        return model
    own = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=own, gradient_as_bucket_view=True, broadcast_buffers=share_buffers)
