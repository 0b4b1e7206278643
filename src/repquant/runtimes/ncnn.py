"""ncnn on the CPU."""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repquant.errors import InputError
from repquant.runtimes.executed import Executed
from repquant.runtimes.model_file import cannot_run
from repquant.runtimes.named_values import NamedValues
from repquant.targets.ncnn import is_integer, open_net
from repquant.targets.ncnn_file import read_ncnn

_MOVING = ("Input", "Split", "Noop", "Cast", "Quantize", "Scale", "Flatten", "Reshape", "Slice", "Concat")


class NcnnRuntime(NamedValues):
    """A .param file and the .bin file beside it in ncnn, which runs one image at a time.

    It is opened with the options under which ncnn computes the file's integers, see `targets.ncnn.open_net`.

    Args:
        path: the .param file.
        threads: of the CPU; None for one.

    Attributes:
        inputs: name -> shape, None for any size.
        outputs: names.

    Raises:
        InputError: a file is missing or damaged, ncnn can't load it, or, when called, no image or one of a shape that
            the network does not take.
    """

    name = "ncnn"

    def __init__(self, path: Path, threads: int | None = None) -> None:
        self.version: str = version("ncnn")
        self._path = path
        self._network = read_ncnn(path)
        self.inputs, self.outputs = self._network.inputs, self._network.outputs
        try:
            self._net = open_net(path, self._network, threads)
        except RuntimeError as error:
            raise InputError(f"ncnn can't load {path}: {error}; are both files complete?") from error

    def _run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        images = len(next(iter(inputs.values())))
        if images == 0:
            raise InputError(f"model {self._path} was given a batch of 0 images; give at least one")
        runs = [self._run_one({name: array[image] for name, array in inputs.items()}) for image in range(images)]
        return {name: np.stack([run[name] for run in runs]) for name in self.outputs}

    def _run_one(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        import ncnn

        extractor = self._net.create_extractor()
        for name, array in inputs.items():
            extractor.input(name, ncnn.Mat(np.ascontiguousarray(array, np.float32)).clone())
        results = {}
        for name in self.outputs:
            status, blob = extractor.extract(name)
            if status != 0:
                raise cannot_run(self._path, "ncnn", RuntimeError(f"output {name} ended with status {status}"))
            results[name] = np.array(blob, np.float32)  # a copy: the blob dies with the extractor
        return results

    def executed(self) -> tuple[Executed, ...]:
        """Return the layers that compute, in their order."""
        return tuple(
            Executed(kind=layer.kind, name=layer.name, is_integer=is_integer(layer))
            for layer in self._network.layers
            if layer.kind not in _MOVING
        )
