"""A float or quantized model as an ONNX file."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import onnx
import torch
from onnx import version_converter
from torch import fx

from repquant import __version__
from repquant.atomic import replace_file
from repquant.export.circular import unwrap_padding
from repquant.export.file_facts import FileFacts
from repquant.export.integer_graph import integer_graph
from repquant.export.node_names import name_nodes
from repquant.export.pooling import pad_before_average, pool_globally
from repquant.export.relu_grids import round_before_relu
from repquant.export.shared_quantizers import share_quantizers
from repquant.export.tracing import trace_to_onnx
from repquant.export.value_names import name_ends
from repquant.graph.devices import example_on, on_device
from repquant.graph.interface import captured_of, flat_example, flattened, input_names, output_names
from repquant.simulation.layers import FakeQuantize
from repquant.targets.target import Target

OPSET = 21
OPSET_OF_TENSORRT_8 = 17
INPUT_NAME = "images"
OUTPUT_NAME = "logits"


def export_graph(
    graph: fx.GraphModule,
    path: Path,
    target: Target | None = None,
    *,
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
    facts: FileFacts | None = None,
) -> int:
    """Write a captured network to `path` as ONNX, checked, and return its size in bytes.

    Inputs have the names of the module's arguments, and outputs the keys of the dict that it returns, where they are
    not given. The batch is dynamic where the capture left it so. Quantized layers become Q/DQ pairs; the target says
    how their weights and biases are stored. Nodes have the names of the layers that they come from.

    Args:
        graph: from `capture`, or simulated.
        path: file to write; it appears only when it is complete.
        target: of a simulated network; None for a float one.
        inputs: names of the inputs, in their order.
        outputs: names of the outputs, in their order.
        facts: what the file says of itself, besides its target and the version of this package.

    Raises:
        InputError: the folder of `path` can't be written.
    """
    is_quantized = any(isinstance(module, FakeQuantize) for module in graph.modules())
    assert is_quantized == (target is not None), "a quantized model is exported for its target, a float one for none"
    inputs, outputs = list(inputs) or input_names(graph), list(outputs) or output_names(graph)
    cpu = torch.device("cpu")
    example, model = example_on(flat_example(graph), cpu), on_device(flattened(graph), cpu)
    traced = trace_to_onnx(
        (integer_graph(model, target) if target else model).eval(),
        example,
        dynamic_batch=captured_of(graph).dynamic_batch,
        opset=OPSET,
    )
    proto = name_ends(name_nodes(traced), inputs, outputs)
    _strip_provenance(proto)
    if target and target.name == "tensorrt":
        proto = pool_globally(proto)
    proto = share_quantizers(pad_before_average(unwrap_padding(proto)))
    if target and target.rounds_before_pointwise:
        proto = round_before_relu(proto)
    if target and target.weights == "float" and target.weight.scale_type == "float32":
        proto = version_converter.convert_version(proto, OPSET_OF_TENSORRT_8)
    facts = replace(facts or FileFacts(), target=target.name if target else None, version=__version__)
    facts.write(proto)
    onnx.checker.check_model(proto, full_check=True)
    with replace_file(path) as temporary:
        onnx.save(proto, temporary)
    return path.stat().st_size


def _strip_provenance(proto: onnx.ModelProto) -> None:
    """Remove the exporter's stack traces: they name folders of this machine and are larger than a small model."""
    del proto.metadata_props[:]
    del proto.graph.metadata_props[:]
    for nodes in (proto.graph.node, proto.graph.input, proto.graph.output, proto.graph.value_info):
        for item in nodes:
            del item.metadata_props[:]
    for node in proto.graph.node:
        node.doc_string = ""
    for tensor in proto.graph.initializer:
        del tensor.metadata_props[:]
