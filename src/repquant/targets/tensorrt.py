"""What TensorRT's ONNX parser refuses, and where its optimizer can't keep to integers.

Nothing here runs TensorRT. The rules are those of its documentation and of the parser's source, for 10.x and 11.x;
docs/how-to/tensorrt.md says what 8.6 asks for besides. Sources by short names:

- parser: github.com/onnx/onnx-tensorrt, function QuantDequantLinearHelper, and docs/operators.md of 10.15
- guide: docs.nvidia.com/deeplearning/tensorrt, "Working with Quantized Types", "Explicit Quantization", and there
  "Q/DQ Layer-Placement Recommendations"
- operators: the operator reference beside it, pages Quantize and Dequantize
"""

from collections.abc import Callable, Iterator
from itertools import chain

import numpy as np
from onnx import NodeProto, TensorProto

from repquant.targets.finding import Finding, Rule
from repquant.targets.onnx_graph import DEQUANTIZE, QUANTIZE, WEIGHTED, OnnxGraph, attribute, node_name

OPERATOR = Rule(
    name="operator",
    severity="refused",
    source="parser, docs/operators.md",
    remedy="write it with other operators, or load a plugin of that name",
)
OPSET = Rule(
    name="opset",
    severity="refused",
    source="ONNX Opset Guide: 9 to 24 in 10.15, to 25 in 11.x",
    remedy="export with an opset between 13, the first with an axis of Q/DQ, and 24",
)
DEQUANTIZED_TYPE = Rule(
    name="dequantized-type",
    severity="refused",
    source='parser ("only activation types allowed as input to this layer"; onnx/onnx-tensorrt#850)',
    remedy="leave biases in float, and weights and activations in int8",
)
UNSIGNED = Rule(
    name="unsigned",
    severity="refused",
    source="parser: UINT8 is taken for INT8 with a warning, and what is above 127 steps is clipped",
    remedy="quantize to int8 with zero point 0",
)
ZERO_POINT = Rule(
    name="zero-point",
    severity="refused",
    source="parser: only symmetric quantization",
    remedy="quantize symmetrically, with zero point 0",
)
SCALE_VALUE = Rule(
    name="scale-value",
    severity="refused",
    source="parser: scale coefficients must all be positive",
    remedy="calibrate again; a range of zeros needs any positive scale",
)
SCALE_CONSTANT = Rule(
    name="scale-constant",
    severity="refused",
    source="operators: scale and zero point are build-time constants",
    remedy="store scale and zero point as initializers (static quantization)",
)
SCALE_COUNT = Rule(
    name="scale-count",
    severity="refused",
    source="parser: as many scales as channels, and zero points as scales",
    remedy="give one scale, or one for each index of the axis",
)
WEIGHT_AXIS = Rule(
    name="weight-axis",
    severity="refused",
    source="guide: per-channel scales of weights lie along the output channels",
    remedy="put the scales on the axis of the output channels, or use one for all weights",
)
ACTIVATION_AXIS = Rule(
    name="activation-axis",
    severity="runs in float",
    source="guide: activations have one scale",
    remedy="quantize the activation with one scale",
)
NOT_QUANTIZED = Rule(
    name="not-quantized",
    severity="runs in float",
    source="guide: quantize all inputs of weighted operations",
    remedy="put QuantizeLinear and DequantizeLinear on each input",
)
INSIDE_FUSION = Rule(
    name="inside-fusion",
    severity="slower",
    source="guide: do not simulate the fusion of convolution, batch normalization and ReLU",
    remedy="quantize behind the activation instead",
)
NOT_BEHIND = Rule(
    name="not-directly-behind",
    severity="slower",
    source="guide: a trailing QuantizeLinear is fused, otherwise the layer writes floats",
    remedy="quantize the output directly behind the layer and its activation",
)
RESIDUAL = Rule(
    name="residual",
    severity="slower",
    source="guide: quantize the residual input of an addition",
    remedy="quantize what is added to the convolution's output",
)
CONCAT = Rule(
    name="concatenation",
    severity="slower",
    source="guide: DequantizeLinear is moved behind an operator if all its inputs have one scale",
    remedy="give all inputs one scale",
)
POOLING = Rule(
    name="pooling",
    severity="runs in float",
    source="guide: a quantizable layer is fused with DequantizeLinear in front and QuantizeLinear behind",
    remedy="quantize its input and its output",
)
REDUCTION = Rule(
    name="reduction",
    severity="runs in float",
    source="parser, docs/operators.md: ReduceMean has no INT8",
    remedy="write a mean over the image as GlobalAveragePool",
)
DYNAMIC_SIZE = Rule(
    name="dynamic-size",
    severity="slower",
    source="Working with Dynamic Shapes: kernels are chosen for one size of the profile",
    remedy="export with fixed sizes but the batch; `repquant engine` builds profiles for the batch alone",
)
SCALE_TYPE = Rule(
    name="scale-type",
    severity="slower",
    source="guide: in a strongly typed network DequantizeLinear gives the type of its scale",
    remedy="store the scales as FP16 (`scale_type='float16'`), so that these layers run in FP16",
)
RULES = tuple(value for value in list(globals().values()) if isinstance(value, Rule))

OLDEST_OPSET, NEWEST_OPSET = 9, 25
# fmt: off
_UNSUPPORTED = frozenset({
    "AffineGrid", "Bernoulli", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "CenterCropPad",
    "Col2Im", "Compress", "ConcatFromSequence", "ConvInteger", "DFT", "Det", "DynamicQuantizeLinear", "ImageDecoder",
    "MatMulInteger", "MaxRoiPool", "MaxUnpool", "MelWeightMatrix", "Multinomial", "NegativeLogLikelihoodLoss",
    "Optional", "OptionalGetElement", "OptionalHasElement", "QLinearConv", "QLinearMatMul", "RegexFullMatch",
    "SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength",
    "SequenceMap", "SoftmaxCrossEntropyLoss", "SplitToSequence", "StringConcat", "StringNormalizer", "StringSplit",
    "TfIdfVectorizer",
})
# fmt: on
_QUANTIZED_TYPES = (TensorProto.INT8, TensorProto.INT4, TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT4E2M1)
_ACTIVATIONS = ("Relu", "LeakyRelu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "Elu", "Tanh", "Gelu", "Mish")
_MOVING = ("MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Slice", "Split", "Pad")
_POOLS = ("AveragePool", "GlobalAveragePool", "MaxPool", "GlobalMaxPool")
_FUSED = ("BatchNormalization", "Add", *_ACTIVATIONS)
_FUSED_OR_MOVED = (QUANTIZE, "Cast", "Concat", *_FUSED, *_MOVING, *_POOLS)


def find(graph: OnnxGraph) -> list[Finding]:
    """Return everything in a file that TensorRT refuses or runs in another way than in fused INT8 kernels."""
    checks: tuple[Callable[[OnnxGraph], Iterator[Finding]], ...] = (
        _operators,
        _grids,
        _axes,
        _layers,
        _outputs,
        _additions,
        _concatenations,
        _pools,
        _inputs,
    )
    found = list(chain.from_iterable(check(graph) for check in checks))
    return found + list(_scale_types(graph, found))


def _finding(rule: Rule, node: NodeProto, detail: str) -> Finding:
    return Finding(rule=rule, node=node_name(node), detail=detail)


def _operators(graph: OnnxGraph) -> Iterator[Finding]:
    if not OLDEST_OPSET <= graph.opset <= NEWEST_OPSET:
        yield Finding(rule=OPSET, node="", detail=f"it has opset {graph.opset}")
    for node in graph.nodes:
        if node.domain not in ("", "ai.onnx") or node.op_type in _UNSUPPORTED:
            yield _finding(OPERATOR, node, f"{'.'.join(filter(None, (node.domain, node.op_type)))} is not supported")


def _grids(graph: OnnxGraph) -> Iterator[Finding]:
    """Types and values of every quantizer."""
    for node in graph.of_type(QUANTIZE, DEQUANTIZE):
        data = graph.constants.get(node.input[0])
        zero_point = graph.constants.get(node.input[2]) if len(node.input) > 2 else None
        if node.op_type == DEQUANTIZE and data is not None and data.data_type not in _QUANTIZED_TYPES:
            yield _finding(DEQUANTIZED_TYPE, node, f"it reads {TensorProto.DataType.Name(data.data_type)}")
        elif node.op_type == QUANTIZE:
            kind = zero_point.data_type if zero_point else attribute(node, "output_dtype", 0)
            if kind in (TensorProto.UNDEFINED, TensorProto.UINT8):  # UINT8 is the default
                yield _finding(UNSIGNED, node, "it quantizes to UINT8")
        if any(name and name not in graph.constants for name in node.input[1:]):
            yield _finding(SCALE_CONSTANT, node, "its scale or zero point is computed")
            continue
        scales = graph.array(node.input[1])
        assert scales is not None
        zeros = None if zero_point is None else graph.array(node.input[2])
        if not (np.isfinite(scales).all() and (scales > 0).all()):
            yield _finding(SCALE_VALUE, node, "its scales are not all positive and finite")
        if zeros is not None and zeros.astype(np.float32).any():
            yield _finding(ZERO_POINT, node, "its zero point is not 0")
        if zeros is not None and zeros.size != scales.size:
            yield _finding(SCALE_COUNT, node, f"it has {scales.size} scales and {zeros.size} zero points")


def _axes(graph: OnnxGraph) -> Iterator[Finding]:
    """Scales for each channel: how many there are, and of what."""
    for node in graph.of_type(QUANTIZE, DEQUANTIZE):
        scales, shape = graph.array(node.input[1]), graph.shapes.get(node.input[0])
        if scales is None or scales.ndim != 1 or scales.size == 1:
            continue
        axis = attribute(node, "axis", 1)
        size = shape[axis] if shape is not None and -len(shape) <= axis < len(shape) else None
        if isinstance(size, int) and size != scales.size:
            yield _finding(SCALE_COUNT, node, f"it has {scales.size} scales for {size} channels on axis {axis}")
        if not _is_weight(graph, node.input[0]):
            yield _finding(ACTIVATION_AXIS, node, f"it has {scales.size} scales for an activation")
        elif node.op_type == DEQUANTIZE:
            rank = len(shape) if shape is not None else None
            for reader in graph.readers[node.output[0]]:
                expected = _output_axis(reader, node.output[0], rank)
                if expected is not None and rank is not None and axis % rank != expected:
                    yield _finding(WEIGHT_AXIS, node, f"scales on axis {axis}; {reader.op_type} needs axis {expected}")


def _is_weight(graph: OnnxGraph, name: str) -> bool:
    """Whether a tensor is constant, or the integers of a constant."""
    producer = graph.producers.get(name)
    quantized = producer is not None and producer.op_type == QUANTIZE and producer.input[0] in graph.constants
    return name in graph.constants or quantized


def _output_axis(reader: NodeProto, weight: str, rank: int | None) -> int | None:
    """Return the axis of a weight that runs over the output channels; None where the reader says nothing about it."""
    if len(reader.input) < 2 or reader.input[1] != weight or rank is None:
        return None
    match reader.op_type:
        case "Conv":
            return 0
        case "ConvTranspose":
            return 1 if attribute(reader, "group", 1) == 1 else None
        case "Gemm":
            return 0 if attribute(reader, "transB", 0) else 1
        case "MatMul":
            return rank - 1
    return None


def _is_integer(graph: OnnxGraph, name: str) -> bool:
    """Whether a tensor comes from a DequantizeLinear, perhaps moved since."""
    producer = graph.producer(name, *_MOVING)
    return producer is not None and producer.op_type == DEQUANTIZE


def _in_integers(graph: OnnxGraph, node: NodeProto) -> bool:
    return node.op_type in WEIGHTED and all(_is_integer(graph, name) for name in node.input[:2])


def _layers(graph: OnnxGraph) -> Iterator[Finding]:
    for node in graph.of_type(*WEIGHTED):
        floats = [name for name in node.input[:2] if not _is_integer(graph, name)]
        if floats:
            what = "no input" if len(floats) == 2 else f"all but {floats[0]}"
            yield _finding(NOT_QUANTIZED, node, f"{what} of this {node.op_type} is quantized")


def _outputs(graph: OnnxGraph) -> Iterator[Finding]:
    """Whether what leaves an integer layer is quantized at once, and not within what is fused with it."""
    for layer in graph.nodes:
        if not _in_integers(graph, layer):
            continue
        for node, name in _fused(graph, layer):
            for reader in graph.readers[name]:
                behind = _behind_quantizer(graph, reader)
                if behind and node is layer and all(r.op_type in ("BatchNormalization", *_ACTIVATIONS) for r in behind):
                    yield _finding(INSIDE_FUSION, reader, f"between {node_name(layer)} and its {behind[0].op_type}")
                elif reader.op_type not in _FUSED_OR_MOVED:
                    yield _finding(NOT_BEHIND, layer, f"its output is read by {reader.op_type} {node_name(reader)}")


def _fused(graph: OnnxGraph, layer: NodeProto) -> Iterator[tuple[NodeProto, str]]:
    """Yield a layer and the normalization, addition and activation behind it, with what each gives."""
    node = layer
    for _ in range(4):
        yield node, node.output[0]
        readers = graph.readers[node.output[0]]
        if len(readers) != 1 or readers[0].op_type not in _FUSED:
            return
        node = readers[0]


def _behind_quantizer(graph: OnnxGraph, node: NodeProto) -> list[NodeProto]:
    """Return what reads the dequantized output of a quantizer; nothing for another node."""
    if node.op_type != QUANTIZE:
        return []
    dequantizers = [reader for reader in graph.readers[node.output[0]] if reader.op_type == DEQUANTIZE]
    return [reader for dequantizer in dequantizers for reader in graph.readers[dequantizer.output[0]]]


def _additions(graph: OnnxGraph) -> Iterator[Finding]:
    for node in graph.of_type("Add"):
        if any(name in graph.constants for name in node.input):
            continue
        producers = [graph.producer(name, "BatchNormalization") for name in node.input]
        ends_a_layer = any(producer is not None and _in_integers(graph, producer) for producer in producers)
        if ends_a_layer and not any(_is_integer(graph, name) for name in node.input):
            yield _finding(RESIDUAL, node, "it adds to the output of an INT8 layer what is not quantized")


def _concatenations(graph: OnnxGraph) -> Iterator[Finding]:
    for node in graph.of_type("Concat"):
        dequantizers = [graph.producer(name, *_MOVING) for name in node.input]
        scales = [
            None if source is None or source.op_type != DEQUANTIZE else graph.array(source.input[1])
            for source in dequantizers
        ]
        known = [scale for scale in scales if scale is not None]
        if known and (len(known) < len(scales) or any(not np.array_equal(known[0], scale) for scale in known)):
            yield _finding(CONCAT, node, "its inputs are not all quantized with one scale")


def _pools(graph: OnnxGraph) -> Iterator[Finding]:
    if not graph.is_quantized:
        return
    for node in graph.of_type(*_POOLS):
        has_integers = _is_integer(graph, node.input[0])
        if "Max" in node.op_type and (has_integers or _is_quantized_behind(graph, node)):
            continue  # Q/DQ commutes with it
        if not (has_integers and _is_quantized_behind(graph, node)):
            yield _finding(POOLING, node, "its input or its output is not quantized")
    for node in graph.of_type("ReduceMean"):
        if _is_integer(graph, node.input[0]):
            yield _finding(REDUCTION, node, "it takes the mean of integers")


def _is_quantized_behind(graph: OnnxGraph, node: NodeProto) -> bool:
    readers = list(graph.readers[node.output[0]])
    seen: set[str] = set()
    while readers and all(reader.op_type in _MOVING for reader in readers):
        names = {reader.output[0] for reader in readers} - seen  # one may read a tensor twice, or lead back to it
        seen |= names
        readers = [reader for name in names for reader in graph.readers[name]]
    return bool(readers) and all(reader.op_type in (QUANTIZE, "Concat") for reader in readers)


def _inputs(graph: OnnxGraph) -> Iterator[Finding]:
    for info in graph.model.graph.input:
        if info.name not in graph.constants and any(
            not isinstance(n, int) for n in graph.shapes.get(info.name, ())[1:]
        ):
            shape = " x ".join(str(size or "any") for size in graph.shapes[info.name])
            yield Finding(rule=DYNAMIC_SIZE, node=info.name, detail=f"the input has the shape {shape}")


def _scale_types(graph: OnnxGraph, found: list[Finding]) -> Iterator[Finding]:
    """FP32 scales, where a layer runs in the type that they decide."""
    scales = (graph.constants.get(node.input[1]) for node in graph.of_type(DEQUANTIZE))
    has_float32 = any(scale is not None and scale.data_type == TensorProto.FLOAT for scale in scales)
    in_float = [finding.node for finding in found if finding.rule.severity == "runs in float"]
    if has_float32 and in_float:
        yield Finding(rule=SCALE_TYPE, node="", detail=f"{len(in_float)} operators run in FP32, as the scales are FP32")
