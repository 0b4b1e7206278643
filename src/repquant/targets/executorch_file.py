"""A .pte file as the rules and the runtime read it: its kernels, XNNPACK's graphs, and what we note beside them."""

import json
import logging
import re
import struct
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repquant.errors import InputError

METADATA = "repquant"
"""Name of the constant method that files of ours have: `Ends` in JSON."""

FORWARD = "forward"
XNNPACK = "XnnpackBackend"

_IDENTIFIERS = (b"ET12", b"ET13")
_IDENTIFIER_PLACE = slice(4, 8)
_DTYPES = {"fp32": "float32", "qint8": "int8", "qcint8": "int8", "qint32": "int32", "qcint32": "int32"}
_NUMPY = {"float32": np.float32, "int8": np.int8, "int32": np.int32}
_NO_VALUE = 2**32 - 1


@contextmanager
def importing() -> Iterator[None]:
    """Import ExecuTorch in this block: its packages warn and log what they don't need.

    Raises:
        InputError: it is not installed, or not all that it needs.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ImportError as error:
        raise InputError(
            f"files for executorch are read and written by the package executorch, which can't be imported ({error}); "
            "run pip install 'repquant[executorch]'"
        ) from error
    finally:
        logging.disable(disabled)


@dataclass(frozen=True, kw_only=True)
class Ends:
    """What a file of ours says of its inputs and outputs.

    Attributes:
        inputs: names.
        outputs: names.
        one_image: it takes one image, and all that goes in and comes out is along the batch: several are run one after
            the other.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    one_image: bool = False

    def text(self) -> str:
        """Return it in JSON."""
        return json.dumps(vars(self))


@dataclass(frozen=True, kw_only=True)
class Value:
    """A tensor in one of XNNPACK's graphs.

    Attributes:
        dtype: as numpy calls it; XNNPACK's name for a type that is not read here.
        shape: sizes of its axes, channels of images last.
        scale: () or (C,) of integers, else None; a single one in six digits, as ExecuTorch's compiler prints it.
        zero_point: of integers.
        axis: that several scales lie along.
        constant: its numbers, or None.
    """

    dtype: str
    shape: tuple[int, ...]
    scale: NDArray[np.float32] | None
    zero_point: int
    axis: int
    constant: NDArray[Any] | None


@dataclass(frozen=True, kw_only=True)
class Node:
    """An operator in one of XNNPACK's graphs.

    Attributes:
        kind: its name in the schema without the prefix, such as "Conv2d".
        reads: what it computes with, constants included.
        writes: its result.
    """

    kind: str
    reads: tuple[Value, ...]
    writes: Value

    @property
    def is_float(self) -> bool:
        """Whether it computes with floats: not a conversion from or to integers."""
        return self.writes.dtype == "float32" and any(
            value.dtype == "float32" for value in self.reads if value.constant is None
        )


@dataclass(frozen=True, kw_only=True)
class ExecutorchProgram:
    """The method `forward` of a file.

    Attributes:
        nodes: operators that XNNPACK runs, in their order.
        kernels: operators that ExecuTorch's own kernels run, in their order, such as "aten::roll.out".
        backends: names of the others that run parts of it.
        shapes: of the inputs.
        ends: of a file of ours; names of our own making for others.
    """

    nodes: tuple[Node, ...]
    kernels: tuple[str, ...]
    backends: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    ends: Ends

    def delegation(self) -> str:
        """Return a sentence on what runs where."""
        total = len(self.nodes) + len(self.kernels)
        others = f"; ExecuTorch's own kernels run {', '.join(dict.fromkeys(self.kernels))}" if self.kernels else ""
        return f"XNNPACK runs {len(self.nodes)} of {total} operators{others}"


def read_executorch(path: Path) -> ExecutorchProgram:
    """Read the .pte file at `path`.

    Raises:
        InputError: no such file, no .pte file, or not all of one; ExecuTorch is not installed.
    """
    if not path.is_file():
        raise InputError(f"model file {path} does not exist; give a .pte file")
    with importing():
        from executorch.exir._serialize._program import deserialize_pte_binary
    content = path.read_bytes()
    if content[_IDENTIFIER_PLACE] not in _IDENTIFIERS:
        raise InputError(f"{path} is no .pte file: it does not begin as one")
    try:
        return _program(deserialize_pte_binary(content))
    except (AttributeError, AssertionError, IndexError, KeyError, TypeError, ValueError, struct.error) as error:
        raise InputError(f"{path} is damaged, or not all of a .pte file: {error}") from error


def _program(file: Any) -> ExecutorchProgram:
    plans = {plan.name: plan for plan in file.program.execution_plan}
    plan = plans[FORWARD]
    operators = [f"{each.name}.{each.overload}" if each.overload else each.name for each in plan.operators]
    calls = [instruction.instr_args for chain in plan.chains for instruction in chain.instructions]
    inline = [delegate.data for delegate in file.program.backend_delegate_data]
    graphs = [inline[each.processed.index] for each in plan.delegates if each.id == XNNPACK]
    return ExecutorchProgram(
        nodes=tuple(node for graph in graphs for node in _nodes(bytes(graph), file.named_data)),
        kernels=tuple(operators[call.op_index] for call in calls if type(call).__name__ == "KernelCall"),
        backends=tuple(each.id for each in plan.delegates if each.id != XNNPACK),
        shapes=tuple(tuple(plan.values[place].val.sizes) for place in plan.inputs),
        ends=_ends(plans),
    )


def _ends(plans: dict[str, Any]) -> Ends:
    if METADATA in plans:
        told = json.loads(plans[METADATA].values[0].val.string_val)
        return Ends(inputs=tuple(told["inputs"]), outputs=tuple(told["outputs"]), one_image=bool(told["one_image"]))
    plan = plans[FORWARD]
    inputs, outputs = (
        (kind,) if len(places) == 1 else tuple(f"{kind}_{number}" for number in range(len(places)))
        for kind, places in (("input", plan.inputs), ("output", plan.outputs))
    )
    return Ends(inputs=inputs, outputs=outputs)


def _nodes(payload: bytes, named: Any) -> Iterator[Node]:
    """Yield the operators of a graph of XNNPACK's, as the delegate in the file holds it."""
    from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import XNNHeader

    header = XNNHeader.from_bytes(payload[: XNNHeader.EXPECTED_LENGTH])
    end = header.flatbuffer_offset + header.flatbuffer_size
    graph = _decompiled(payload[header.flatbuffer_offset : end])
    constants = [_constant(entry, named) for entry in graph["constant_data"]]
    values: dict[int, Value] = {}
    for entry in graph["xvalues"]:
        number, value = _value(entry["xvalue_union"], constants)
        values[number] = value
    for entry in graph["xnodes"]:
        union = entry["xnode_union"]
        reads = [number for key, number in union.items() if key.endswith("_id") and key != "output_id"]
        yield Node(
            kind=entry["xnode_union_type"].removeprefix("XNN"),
            reads=tuple(values[number] for number in reads if number in values and number != _NO_VALUE),
            writes=values[union["output_id"]],
        )


def _value(entry: dict[str, Any], constants: Sequence[bytes]) -> tuple[int, Value]:
    tensor, grid = entry.get("tensor_value", entry), entry.get("quant_params")
    kind = tensor["datatype"].removeprefix("xnn_datatype_")
    dtype, shape = _DTYPES.get(kind, kind), tuple(tensor["dims"])
    constant, scale = None, None
    if (place := tensor["constant_buffer_idx"]) and dtype in _NUMPY:
        constant = np.frombuffer(constants[place], _NUMPY[dtype]).reshape(shape)
    if grid is not None and "scale" in grid:
        scale = np.asarray(grid["scale"], np.float32)
        if place := grid.get("scale_buffer_idx", 0):
            scale = np.frombuffer(constants[place], np.float32)
    value = Value(
        dtype=dtype,
        shape=shape,
        scale=scale,
        zero_point=int((grid or {}).get("zero_point", 0)),
        axis=int((grid or {}).get("channel_dim", 0)),
        constant=constant,
    )
    return int(tensor["id_out"]), value


def _constant(entry: dict[str, Any], named: Any) -> bytes:
    key = entry.get("named_key")
    if not key or named is None:
        return b""
    return bytes(named.buffers[named.pte_data[key].buffer_index])


def _decompiled(content: bytes) -> Any:
    """Return a graph of XNNPACK's as JSON has it, by the schema and the compiler that come with ExecuTorch."""
    from executorch.exir._serialize._flatbuffer import _flatc_decompile

    schema = files("executorch.backends.xnnpack.serialization").joinpath("schema.fbs").read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        for name, data in (("schema.fbs", schema), ("graph.bin", content)):
            Path(folder, name).write_bytes(data)
        arguments = ["--raw-binary", "--defaults-json"]
        _flatc_decompile(folder, str(Path(folder, "schema.fbs")), str(Path(folder, "graph.bin")), arguments)
        text = Path(folder, "graph.json").read_text(encoding="utf-8")
    return json.loads(re.sub(r"(?<=: )(-?)inf\b", r"\1Infinity", text))  # as the compiler writes the limits of a ReLU
