"""One table: operator of ONNX -> function of torch.

A function takes the inputs of the operator by place and its attributes by name, with the defaults of ONNX. Inputs that
it annotates as `Known` are numbers that the file has to know; `outputs` and `device`, where it has them, are the number
of outputs and where tensors are made. The names are those of the domain of ONNX itself.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from repquant.reader.arithmetic import ARITHMETIC
from repquant.reader.normalizations import NORMALIZATIONS
from repquant.reader.shapes import SHAPES
from repquant.reader.windows import WINDOWS

OPERATORS: Mapping[str, Callable[..., Any]] = MappingProxyType({**ARITHMETIC, **NORMALIZATIONS, **SHAPES, **WINDOWS})

ONLY_NUMBERS = frozenset({"ReduceProd", "Size"})
"""Operators that are read only where all of their inputs are known before anything is computed."""
