"""What flows through the nodes of a file: tensors, and numbers that are known before anything is computed.

Numbers are sizes, axes, limits and what is computed from them. They are arrays of NumPy, so that an exporter sees
constants where a network only moves sizes around. Where the batch is free, its size is a symbol of the exporter, and
the array is one of objects.
"""

from typing import Annotated, Any, cast, get_origin

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from repquant.errors import InputError

Known = Annotated[NDArray[Any], "known"]
"""Of a parameter of an operator: it takes numbers, not a tensor."""

MaybeKnown = Annotated[NDArray[Any] | None, "known"]
"""As `Known`, of an input that may be left out."""

Value = Tensor | NDArray[Any] | None


def is_known(annotation: Any) -> bool:
    """Whether a parameter is annotated as one of numbers."""
    return get_origin(annotation) is Annotated


def shape_of(value: Tensor | NDArray[Any]) -> NDArray[Any]:
    """Return the shape of a tensor or array, with symbols as the exporter has them."""
    sizes = np.empty(value.ndim, dtype=object)
    sizes[:] = list(value.shape)
    return plain(sizes)


def plain(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array of objects as one of integers, where none of them is a symbol."""
    if array.dtype == object and all(isinstance(each, int | np.integer) for each in array.flat):
        return array.astype(np.int64)
    return array


def has_symbols(array: NDArray[Any]) -> bool:
    """Whether an array holds sizes that are not known yet."""
    return array.dtype == object


def as_tensor(value: Value, device: torch.device) -> Tensor | None:
    """Return numbers as a tensor, and a tensor as it is.

    Raises:
        InputError: the numbers depend on the size of the batch.
    """
    if not isinstance(value, np.ndarray):
        return value
    if has_symbols(value):
        raise InputError("it computes with the size of the batch as with data; export the file with a fixed batch")
    return torch.tensor(value, device=device)


def integers(array: NDArray[Any]) -> list[int]:
    """Return sizes or axes as a list; symbols stay what they are."""
    return cast(list[int], array.reshape(-1).tolist())
