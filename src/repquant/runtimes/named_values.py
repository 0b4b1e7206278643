"""What the runtimes of files share: their inputs and outputs have names, and a place in the call."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from repquant.runtimes.interface import Array
from repquant.runtimes.model_file import as_outputs, check_inputs, check_names


class NamedValues(ABC):
    """A file in an engine, which runs it by name.

    Attributes:
        inputs: name -> shape, in the order of the call; None stands for any size.
        outputs: names, in the order of the result.
    """

    inputs: Mapping[str, Sequence[int | None]]
    outputs: tuple[str, ...]
    _path: Path

    def __call__(self, *inputs: Array) -> Array | tuple[Array, ...]:
        """Return the output for the inputs, or a tuple where there are several.

        Raises:
            InputError: inputs of a number or a shape that the model does not take.
        """
        check_inputs(self._path, [*self.inputs.values()], [x.shape for x in inputs])
        results = self._run(dict(zip(self.inputs, inputs, strict=True)))
        return as_outputs([results[name] for name in self.outputs])

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return the outputs by name for the inputs by name.

        Raises:
            InputError: an input is missing, or there is none of that name.
        """
        check_names(self._path, tuple(self.inputs), inputs)
        return self._run(inputs)

    @abstractmethod
    def _run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return the outputs by name for inputs that have the right names."""
