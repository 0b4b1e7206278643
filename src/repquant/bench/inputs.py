"""What a file is given to measure its speed: integers and floats take as long whatever they hold."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from repquant.errors import InputError

Arrays = dict[str, NDArray[Any]]


def make_inputs(
    path: Path, shapes: Mapping[str, Sequence[int | None]], types: Mapping[str, np.dtype[Any]], batch: int, size: int
) -> Arrays:
    """Return an array for each input: floats are normal numbers, integers and truth values are 1.

    Args:
        path: of the file, for messages.
        shapes: name -> shape; None stands for any size.
        types: name -> type; float32 where none is given.
        batch: the first size of every input, where the file leaves it open.
        size: stands for every other size that the file leaves open.

    Raises:
        InputError: the file has a batch of its own, and it is another one.
    """
    generator = np.random.default_rng(0)
    arrays: Arrays = {}
    for name, shape in shapes.items():
        if shape and shape[0] not in (None, batch):
            raise InputError(
                f"{path} takes batches of exactly {shape[0]} ({name}), and a batch of {batch} was asked for; ask for "
                f"{shape[0]}, or export the file with a batch of any size"
            )
        sizes = [batch if place == 0 else size if known is None else known for place, known in enumerate(shape)]
        kind = types.get(name, np.dtype(np.float32))
        is_float = np.issubdtype(kind, np.floating)
        values = generator.standard_normal(sizes, np.float32) if is_float else np.ones(sizes)
        arrays[name] = values.astype(kind)
    return arrays


def input_types(model: onnx.ModelProto) -> dict[str, np.dtype[Any]]:
    """Return the type of each input of a model."""
    return {
        info.name: onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type) for info in model.graph.input
    }
