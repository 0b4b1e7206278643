"""What the engines that read ONNX files ask of the file and of the images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from repquant.errors import InputError
from repquant.runtimes.interface import Array


def require_file(path: Path) -> Path:
    """Return `path`.

    Raises:
        InputError: `path` is not a file.
    """
    if not path.is_file():
        raise InputError(
            f"model file {path} does not exist; give an .onnx file that `repquant ptq` or `repquant export` wrote"
        )
    return path


def cannot_load(path: Path, engine: str, error: Exception) -> InputError:
    """Return the error for a file that `engine` refuses, with the reason that the engine gave."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    reason = lines[-1]  # after where in its own source the engine gave up
    return InputError(f"{engine} can't load {path}: {reason}; is it a complete ONNX file?")


def require_classifier(path: Path, inputs: int, outputs: int) -> None:
    """Accept a model with one input and one output.

    Raises:
        InputError: the model has more of them: it is no classifier.
    """
    if (inputs, outputs) != (1, 1):
        raise InputError(
            f"model {path} has {inputs} inputs and {outputs} outputs; "
            "a classifier with one input (images) and one output (logits) is needed"
        )


def check_inputs(path: Path, expected: Sequence[Sequence[int | None]], given: Sequence[Sequence[int]]) -> None:
    """Accept inputs of the number and the shapes that the model takes; see `check_images`.

    Raises:
        InputError: another number of inputs, or another shape.
    """
    if len(expected) != len(given):
        raise InputError(f"model {path} takes {len(expected)} inputs, not {len(given)}")
    for shape, given_shape in zip(expected, given, strict=True):
        check_images(path, shape, given_shape)


def as_outputs(results: Sequence[Any]) -> Array | tuple[Array, ...]:
    """Return what an engine gave: the output by itself where there is one, else a tuple."""
    arrays = tuple(np.asarray(result) for result in results)
    return arrays[0] if len(arrays) == 1 else arrays


def check_images(path: Path, expected: Sequence[int | None], given: Sequence[int]) -> None:
    """Accept images whose shape the model takes; None in `expected` stands for any size.

    Raises:
        InputError: the shapes differ.
    """
    fits = len(expected) == len(given) and all(
        want is None or want == have for want, have in zip(expected, given, strict=True)
    )
    if not fits:
        shape = " x ".join("any" if size is None else str(size) for size in expected)
        raise InputError(
            f"model {path} takes images of shape {shape}, not {' x '.join(map(str, given))}; "
            "choose the image size that it was exported with"
        )
