"""What the engines that read ONNX files ask of the file and of the images."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

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


def check_names(path: Path, expected: Sequence[str], given: Collection[str]) -> None:
    """Accept tensors for all inputs of a model.

    Raises:
        InputError: one is missing, or is not an input.
    """
    if set(expected) != set(given):
        raise InputError(f"model {path} takes {', '.join(expected)}, not {', '.join(given) or 'nothing'}")


def check_type(path: Path, given: str, float32: str) -> None:
    """Accept an input of float32, or of integers.

    Args:
        path: of the model.
        given: type of its input, in the engine's words.
        float32: that type in the same words.

    Raises:
        InputError: it takes other floats.
    """
    if given != float32 and any(kind in given for kind in ("double", "float", "f16", "f64")):
        raise InputError(f"model {path} takes images as {given}; export it so that it takes {float32}")


def check_logits(path: Path, logits: NDArray[Any], images: int) -> NDArray[np.float32]:
    """Return the output for so many images as float32 logits (N, K).

    Raises:
        InputError: the output has another shape: the model is no classifier.
    """
    if logits.ndim != 2 or len(logits) != images:
        raise InputError(f"model {path} gives an output of shape {logits.shape} for {images} images, not logits (N, K)")
    return logits.astype(np.float32, copy=False)


def cannot_run(path: Path, engine: str, error: Exception) -> Exception:
    """Return the error for images that `engine` fails on: they may be too many, or the file is to blame."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if isinstance(error, MemoryError) or any(word in str(error).lower() for word in ("alloc", "memory")):
        return MemoryError(f"{engine}: {lines[-1]}")
    return InputError(f"{engine} can't run {path}: {lines[-1]}; is it a classifier of images of this size?")


def check_images(path: Path, expected: Sequence[int | None], given: Sequence[int]) -> None:
    """Accept images whose shape the model takes; None in `expected` stands for any size.

    Raises:
        InputError: the shapes differ.
    """
    fits = len(expected) == len(given) and all(
        want is None or want == have for want, have in zip(expected, given, strict=True)
    )
    if not fits and len(expected) == len(given) and list(expected[1:]) == list(given[1:]):
        raise InputError(
            f"model {path} takes batches of exactly {expected[0]} images, and one has {given[0]}, as the last may "
            "have; export it with a batch of any size"
        )
    if not fits:
        shape = " x ".join("any" if size is None else str(size) for size in expected) or "of no dimensions"
        raise InputError(
            f"model {path} takes images of shape {shape}, not {' x '.join(map(str, given))}; "
            "choose the image size that it was exported with"
        )
