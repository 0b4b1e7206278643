"""What every engine looks like to the layers above."""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from repquant.runtimes.layer_time import LayerTime

Array = NDArray[np.float32]


class Runtime(Protocol):
    """A model, loaded into an engine and ready to run."""

    @property
    def name(self) -> str:
        """The engine, in the words of the command line: `pytorch`, `onnxruntime`, `openvino` and so on."""
        ...

    @property
    def version(self) -> str:
        """The engine's version."""
        ...

    def __call__(self, *inputs: Array) -> Array | tuple[Array, ...]:
        """Return the output for the network's inputs (N, ...), or a tuple where it has several, in the file's order.

        N may be any number, and what is returned is there. A classifier maps normalized images (N, 3, H, W) to logits
        (N, K).
        """
        ...


class FileRuntime(Runtime, Protocol):
    """An engine that runs a file, and so knows its inputs and outputs by name."""

    @property
    def inputs(self) -> Mapping[str, Sequence[int | None]]:
        """Name -> shape, in the order of the call; None stands for any size."""
        ...

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names, in the order of the result."""
        ...


@runtime_checkable
class ProfiledRuntime(Protocol):
    """An engine that tells where its time goes."""

    def profile(self, *inputs: Array, runs: int = 10) -> tuple[LayerTime, ...]:
        """Return how long each operator takes, in their order."""
        ...
