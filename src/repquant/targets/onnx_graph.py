"""An ONNX file as the rules read it: who writes a tensor, who reads it, what is constant."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError, Message
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data

from repquant.errors import InputError, shortened

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_ENGINE_MAGIC = (b"ftrt", b"ptrt")


@dataclass(frozen=True)
class OnnxGraph:
    """The main graph of a model. What is inside of If, Loop and Scan is not read.

    Attributes:
        model: the whole of it.
        constants: initializers, and what Constant nodes give, by name.
        producers: the node that writes a tensor.
        readers: the nodes that read a tensor, once for each time.
        shapes: sizes of a tensor where they are known: numbers, names, or None.
    """

    model: onnx.ModelProto
    constants: Mapping[str, TensorProto]
    producers: Mapping[str, NodeProto]
    readers: Mapping[str, Sequence[NodeProto]]
    shapes: Mapping[str, tuple[int | str | None, ...]]

    @property
    def nodes(self) -> Sequence[NodeProto]:
        """All nodes, in the order of the file."""
        nodes: Sequence[NodeProto] = self.model.graph.node
        return nodes

    @property
    def opset(self) -> int:
        """Version of ONNX's own operators; 0 where the file has none."""
        return max((entry.version for entry in self.model.opset_import if entry.domain in ("", "ai.onnx")), default=0)

    @property
    def is_quantized(self) -> bool:
        """Whether anything is quantized in the way that is checked here, with Q/DQ nodes."""
        return any(node.op_type in (QUANTIZE, DEQUANTIZE) for node in self.nodes)

    def of_type(self, *operators: str) -> list[NodeProto]:
        """Return the nodes of some operators."""
        return [node for node in self.nodes if node.op_type in operators]

    def array(self, name: str) -> NDArray[Any] | None:
        """Return the values of a constant; None for a tensor that is none."""
        tensor = self.constants.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def producer(self, name: str, *through: str) -> NodeProto | None:
        """Return the node that writes a tensor, looking behind operators that only move values."""
        node = self.producers.get(name)
        for _ in self.nodes:  # as far as a path can lead that is no circle
            if node is None or node.op_type not in through:
                return node
            node = self.producers.get(node.input[0])
        return None


def read_graph(path: Path) -> OnnxGraph:
    """Read the ONNX file at `path`, the files beside it that hold its tensors included.

    Raises:
        InputError: no such file, no ONNX file, or one of the files beside it is missing or elsewhere.
    """
    if not path.is_file():
        raise InputError(f"model file {path} does not exist; give an .onnx file")
    content = path.read_bytes()
    if content[:4] in _ENGINE_MAGIC:
        raise InputError(f"{path} is a TensorRT engine; give the ONNX file that it was built from")
    try:
        model = onnx.ModelProto.FromString(content)
    except DecodeError as error:
        raise InputError(f"{path} is no ONNX file, or not all of one: {error}") from error
    if not model.graph.node:
        raise InputError(f"{path} is no ONNX file: it holds no operators")
    external = [tensor for tensor in _tensors_in(model) if uses_external_data(tensor)]
    locations = {entry.value for tensor in external for entry in tensor.external_data if entry.key == "location"}
    if missing := sorted(name for name in locations if not (path.parent / name).is_file()):
        names = ", ".join(map(shortened, missing))
        raise InputError(f"{path} has tensors in {names}, which is not beside it; copy it there")
    if external:
        try:
            for tensor in external:  # all of them here: what folds constants later opens any place
                load_external_data_for_tensor(tensor, str(path.parent))
        except (onnx.checker.ValidationError, OSError, ValueError) as error:
            raise InputError(f"{path}: its tensors can't be read from other files: {_first_line(error)}") from error
    with blaming_the_file(path, model):
        return graph_of(model)


def _tensors_in(message: Message) -> Iterator[TensorProto]:
    """Yield all tensors: initializers, and those in attributes, bodies, functions and sparse tensors."""
    if isinstance(message, TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for each in [value] if isinstance(value, Message) else value:
                yield from _tensors_in(each)


@contextmanager
def blaming_the_file(path: Path, model: onnx.ModelProto) -> Iterator[None]:
    """Let what fails in the block be the fault of the file, where onnx's own checker refuses the file too.

    Raises:
        InputError: it does; else the error is as it was.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        try:
            onnx.checker.check_model(model)
        except Exception as refusal:
            raise InputError(f"{path} is no valid ONNX file: {_first_line(refusal)}") from error
        raise


def _first_line(error: Exception) -> str:
    return shortened((str(error).strip().splitlines() or [type(error).__name__])[0])


def graph_of(model: onnx.ModelProto) -> OnnxGraph:
    """Return the graph of a model that is in memory; its shapes are inferred as far as that goes."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    readers: dict[str, list[NodeProto]] = defaultdict(list)
    for node in model.graph.node:
        for name in node.input:
            readers[name].append(node)
        if node.op_type == "Constant":
            constants.update((node.output[0], entry.t) for entry in node.attribute if entry.name == "value")
    return OnnxGraph(
        model=model,
        constants=constants,
        producers={name: node for node in model.graph.node for name in node.output},
        readers=readers,
        shapes=_shapes(model),
    )


def node_name(node: NodeProto) -> str:
    """Return what a person finds the node by."""
    return str(node.name or (node.output[0] if node.output else node.op_type))


def attribute(node: NodeProto, name: str, default: Any) -> Any:
    """Return the value of an attribute."""
    return next((helper.get_attribute_value(entry) for entry in node.attribute if entry.name == name), default)


def integer_values(model: onnx.ModelProto) -> set[str]:
    """Return the names of the values that are integers of 8 bits in a graph that ONNX Runtime has optimized."""
    eight_bits = (TensorProto.INT8, TensorProto.UINT8)
    found = {tensor.name for tensor in model.graph.initializer if tensor.data_type in eight_bits}
    found |= {info.name for info in model.graph.input if info.type.tensor_type.elem_type in eight_bits}
    for node in model.graph.node:
        reads_integers = any(name in found for name in node.input)
        gives_floats = node.op_type == DEQUANTIZE or node.op_type.startswith("MatMulInteger")
        if node.op_type == QUANTIZE or (reads_integers and not gives_floats):
            found.update(node.output)
    return found


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int | str | None, ...]]:
    try:
        inferred = onnx.shape_inference.infer_shapes(model)
    except (onnx.shape_inference.InferenceError, RuntimeError):  # operators that onnx does not know, or wrong shapes
        inferred = model
    graph = inferred.graph
    shapes: dict[str, tuple[int | str | None, ...]] = {}
    for info in (*graph.input, *graph.output, *graph.value_info):
        tensor = info.type.tensor_type
        if tensor.HasField("shape"):
            shapes[info.name] = tuple(
                size.dim_value if size.HasField("dim_value") else size.dim_param or None for size in tensor.shape.dim
            )
    return shapes | {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
