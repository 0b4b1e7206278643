"""What people calibrate with: any iterable of batches, read as often as a method needs it."""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from repquant.errors import InputError
from repquant.graph.run import Batch


def rereadable(batches: Iterable[Batch]) -> Iterable[Batch]:
    """Return batches that can be read several times: an iterator, which can't, is kept in memory.

    Raises:
        InputError: no batches, or a tensor in place of batches.
    """
    if isinstance(batches, Tensor | str | Mapping) or not isinstance(batches, Iterable):
        raise InputError(
            f"batches is a {type(batches).__name__}; give an iterable of batches, for example a DataLoader or [images]"
        )
    return list(batches) if isinstance(batches, Iterator) else batches


def example_of(module: nn.Module, batches: Iterable[Batch]) -> Any:
    """Return the inputs of the first batch, as `capture` takes them.

    Of a tuple or list as many parts are inputs as `forward` needs; what follows, such as labels, is left out.

    Raises:
        InputError: there is no batch.
    """
    for batch in batches:
        if isinstance(batch, Tensor):
            return batch
        if isinstance(batch, Mapping):
            return dict(batch)
        return tuple(batch[: _needed(module)])
    raise InputError("there are no calibration images; give at least one batch")


def first_images(batches: Iterable[Batch], count: int) -> Iterator[Batch]:
    """Yield whole batches until `count` images are reached."""
    seen = 0
    for batch in batches:
        if seen >= count:
            return
        yield batch
        seen += _size(batch)


def _size(batch: Batch) -> int:
    if isinstance(batch, Tensor):
        return len(batch)
    parts = batch.values() if isinstance(batch, Mapping) else batch
    return len(next(iter(parts)))


def _needed(module: nn.Module) -> int:
    parameters = inspect.signature(module.forward).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [p for p in parameters if p.kind in positional and p.default is inspect.Parameter.empty]
    return max(1, len(required))
