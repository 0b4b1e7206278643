"""What every engine looks like to the layers above."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Runtime(Protocol):
    """A model, loaded into an engine and ready to run."""

    @property
    def name(self) -> str:
        """The engine, in the words of the command line: `pytorch`, `onnxruntime`, `openvino`, `tensorrt`."""
        ...

    @property
    def version(self) -> str:
        """The engine's version."""
        ...

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Normalized images (N, 3, H, W) to logits (N, K), for any N; returns when the logits are there."""
        ...
