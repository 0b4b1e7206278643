"""The module that computes what a file does."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

from repquant.errors import InputError
from repquant.graph.names import place
from repquant.reader.file import inputs_of
from repquant.reader.names import constant_path, identifiers
from repquant.reader.steps import Step, make_step
from repquant.reader.values import Value, as_tensor
from repquant.targets.onnx_graph import OnnxGraph

_MOST_NUMBERS = 64  # elements of a constant of floats that may stand for limits or scales


@dataclass(frozen=True, kw_only=True)
class Program:
    """What a network runs.

    Attributes:
        inputs: names in the file, in its order.
        outputs: names in the file, in its order.
        steps: in the order of computation.
        numbers: constants that are numbers, by name.
        tensors: constants that are tensors: name in the file -> path in the network.
        batch: the only one that is taken; None for any.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    steps: tuple[Step, ...]
    numbers: Mapping[str, NDArray[Any]]
    tensors: Mapping[str, str]
    batch: int | None


class OnnxNetwork(nn.Module):
    """A file as a module: it takes the inputs of the file by place or by name.

    It returns the output of the file, or a dict of them by name where there are several.
    """

    program: Program

    def run(self, *inputs: Tensor) -> Tensor | dict[str, Tensor]:
        """Compute all outputs, given all inputs in the order of the file.

        Raises:
            InputError: a batch of another size than the file is for, or inputs that it does not fit; names the node.
        """
        program, device, batch = self.program, inputs[0].device, inputs[0].shape[0]
        if program.batch is not None and batch != program.batch:
            raise InputError(
                f"the file computes with batches of exactly {program.batch}, and one has {batch}; give such batches, "
                "or export the file with a batch of any size"
            )
        values: dict[str, Value] = dict(program.numbers)
        values |= {name: self.get_parameter(path) for name, path in program.tensors.items()}
        values |= dict(zip(program.inputs, inputs, strict=True))
        for step in program.steps:
            arguments = [values[name] if name else None for name in step.node.input]
            values |= step.run(arguments, program.numbers, device)
        results = {name: as_tensor(values[name], device) for name in program.outputs}
        keys = identifiers(results)
        tensors = {keys[name]: value for name, value in results.items() if value is not None}
        return next(iter(tensors.values())) if len(tensors) == 1 else tensors


def make_network(graph: OnnxGraph, batch: int | None) -> OnnxNetwork:
    """Return the module for a graph that can be read; its parameters are named as in the file.

    Args:
        graph: from `read_float_graph`.
        batch: the only size that it works with; None for any.
    """
    inputs = tuple(value.name for value in inputs_of(graph))
    outputs = tuple(value.name for value in graph.model.graph.output)
    read = {*graph.readers, *outputs}
    network = _class_for(inputs)()
    numbers, tensors = {}, {}
    for name, tensor in graph.constants.items():
        array = numpy_helper.to_array(tensor)
        is_float = array.dtype == np.float32
        if not is_float or array.size <= _MOST_NUMBERS:
            numbers[name] = array
        if is_float and name in read:
            parameter = nn.Parameter(torch.from_numpy(array.copy()))
            tensors[name] = place(network, constant_path(name, graph), parameter)
    network.program = Program(
        inputs=inputs,
        outputs=outputs,
        steps=tuple(make_step(node, graph.opset, read) for node in graph.nodes),
        numbers=numbers,
        tensors=tensors,
        batch=batch,
    )
    return network.eval()


def _class_for(inputs: Sequence[str]) -> type[OnnxNetwork]:
    """Return a class whose `forward` has the inputs of the file as its parameters, for what reads signatures."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind) for name in ("self", *identifiers(inputs).values())]
    signature = inspect.Signature(parameters)

    def forward(*args: Any, **kwargs: Any) -> Any:
        network, *given = signature.bind(*args, **kwargs).args
        return network.run(*given)

    forward.__signature__ = signature  # type: ignore[attr-defined]
    return type("OnnxNetwork", (OnnxNetwork,), {"forward": forward})
