"""A node of a file as a call of a torch function."""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor

from repquant.errors import InputError, shortened
from repquant.reader import sizes
from repquant.reader.limits import TooManyElementsError, require_small
from repquant.reader.operators import ONLY_NUMBERS, OPERATORS
from repquant.reader.values import Value, as_tensor, is_known
from repquant.targets.onnx_graph import node_name

_MAY_BE_KNOWN = {"Gather": (1,)}
"""Inputs that are taken as numbers where they are, and as tensors else."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """One node.

    Attributes:
        node: of the file.
        opset: of the file.
        function: what computes it.
        attributes: by name.
        numbers: places of the inputs that have to be known before anything is computed.
        needed: number of outputs up to the last one that is read.
    """

    node: NodeProto
    opset: int
    function: Callable[..., Any] | None
    attributes: Mapping[str, Any]
    numbers: frozenset[int]
    needed: int

    def run(self, inputs: Sequence[Value], known: Mapping[str, NDArray[Any]], device: torch.device) -> dict[str, Value]:
        """Return what the node gives, by name.

        Args:
            inputs: tensors or numbers, None for one that is left out.
            known: constants of the file that are small, as numbers.
            device: where tensors are made of numbers.

        Raises:
            InputError: it can't be computed; the message names the node.
            TooManyElementsError: it makes too many.
        """
        try:
            results = self._computed(inputs, known, device)
            if len(results) < self.needed:
                raise InputError(f"its output {self.needed} is read, and only {len(results)} can be computed")
        except Exception as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            kind = TooManyElementsError if isinstance(error, TooManyElementsError) else InputError
            raise kind(f"{self.node.op_type} {shortened(node_name(self.node))}: {lines[0]}") from error
        return dict(zip(self.node.output, results, strict=False))

    def _computed(
        self, inputs: Sequence[Value], known: Mapping[str, NDArray[Any]], device: torch.device
    ) -> Sequence[Value]:
        numbers = [known.get(name, value) for name, value in zip(self.node.input, inputs, strict=True)]
        require_small(self.node.op_type, numbers, self.attributes)
        if _are_numbers(numbers) and (self.function is None or sizes.can_compute(self.node, numbers)):
            return sizes.compute(self.node, self.opset, numbers, self.attributes)
        if self.function is None:
            raise InputError("its numbers depend on the values of a tensor; they have to be constant")
        arguments: list[Value] = []
        for place, (number, value) in enumerate(zip(numbers, inputs, strict=True)):
            if place in self.numbers:
                if isinstance(number, Tensor):
                    raise InputError(f"input {place + 1} depends on the values of a tensor; it has to be constant")
                arguments.append(number)
            elif place in _MAY_BE_KNOWN.get(self.node.op_type, ()):
                arguments.append(number)
            else:
                arguments.append(as_tensor(value, device))
        more = {"device": device} if "device" in inspect.signature(self.function).parameters else {}
        result = self.function(*arguments, **self.attributes, **more)
        return result if isinstance(result, tuple) else (result,)


def _are_numbers(values: Sequence[Value]) -> TypeGuard[Sequence[NDArray[Any] | None]]:
    return any(value is not None for value in values) and all(
        value is None or (isinstance(value, np.ndarray) and value.size <= sizes.MOST) for value in values
    )


def make_step(node: NodeProto, opset: int, read: Collection[str]) -> Step:
    """Return the step for a node; `read` holds the names of the values that are read.

    Raises:
        InputError: an attribute or input that the table's function does not have.
    """
    function = OPERATORS.get(node.op_type)
    attributes = {entry.name: _value(helper.get_attribute_value(entry)) for entry in node.attribute}
    numbers: frozenset[int] = frozenset()
    if function is not None:
        signature = inspect.signature(function)
        if "outputs" in signature.parameters:
            attributes["outputs"] = len(node.output)
        try:
            signature.bind_partial(*node.input, **attributes)
        except TypeError as error:
            raise InputError(f"{node.op_type} {shortened(node_name(node))} can't be read: {error}") from error
        parameters = list(signature.parameters.values())
        numbers = frozenset(place for place, each in enumerate(parameters) if is_known(each.annotation))
    else:
        assert node.op_type in ONLY_NUMBERS
    needed = max((place for place, name in enumerate(node.output, 1) if name in read), default=0)
    return Step(node=node, opset=opset, function=function, attributes=attributes, numbers=numbers, needed=needed)


def _value(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    return numpy_helper.to_array(value) if isinstance(value, TensorProto) else value
