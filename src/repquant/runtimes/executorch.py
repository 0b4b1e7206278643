"""ExecuTorch on the CPU, with XNNPACK."""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from repquant.errors import InputError
from repquant.runtimes.executed import Executed
from repquant.runtimes.model_file import cannot_run
from repquant.runtimes.named_values import NamedValues
from repquant.targets.executorch import load_method
from repquant.targets.executorch_file import importing, read_executorch


class ExecutorchRuntime(NamedValues):
    """A .pte file in ExecuTorch, which leaves to XNNPACK what that part of the file holds.

    A file of ours for one image may be given any number: they run one after the other, as on a phone. Other files take
    what they say.

    Args:
        path: the .pte file.
        threads: of the CPU, from then on for all files of this process; None leaves them as they are.

    Attributes:
        inputs: name -> shape, None for any size.
        outputs: names.

    Raises:
        InputError: no such file, not a program that ExecuTorch can load, or, when called, inputs of a shape that the
            program does not take.
    """

    name = "executorch"

    def __init__(self, path: Path, threads: int | None = None) -> None:
        self.version: str = version("executorch")
        self._path = path
        self._program = read_executorch(path)
        if threads is not None:
            with importing():
                from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
            _unsafe_reset_threadpool(threads)
        try:
            self._method = load_method(path)
        except RuntimeError as error:
            raise InputError(f"ExecuTorch can't load {path}: {error}; is it a complete .pte file?") from error
        ends = self._program.ends
        shapes = [(None, *shape[1:]) if ends.one_image else shape for shape in self._program.shapes]
        self.inputs = dict(zip(ends.inputs, shapes, strict=True))
        self.outputs = ends.outputs

    def _run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        given = [torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in self.inputs]
        try:
            if self._program.ends.one_image:
                runs = [self._method.execute(list(image)) for image in zip(*(x.split(1) for x in given), strict=True)]
                results = [torch.cat(parts) for parts in zip(*runs, strict=True)]
            else:
                results = list(self._method.execute(given))
        except (RuntimeError, MemoryError) as error:
            raise cannot_run(self._path, "ExecuTorch", error) from error
        return {name: result.numpy() for name, result in zip(self.outputs, results, strict=True)}

    def executed(self) -> tuple[Executed, ...]:
        """Return the operators that run for this file: XNNPACK's, then those of ExecuTorch's own kernels."""
        nodes = [
            Executed(kind=node.kind, name=f"{number}", is_integer=not node.is_float)
            for number, node in enumerate(self._program.nodes)
            if node.kind != "Convert"
        ]
        return (*nodes, *(Executed(kind=kernel, name="", is_integer=False) for kernel in self._program.kernels))
