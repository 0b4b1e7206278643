"""Files as exporters write them: by torch's two exporters, and of single operators."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from repquant.reader.batch import network_of
from repquant.reader.file import read_float_graph
from repquant.reader.network import OnnxNetwork


class Logits(nn.Module):
    """A network that returns its output alone."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        output = self.network(image)
        return output if isinstance(output, Tensor) else output.logits


def export(module: nn.Module, x: Tensor, path: Path, exporter: str = "script", free: bool = True) -> Path:
    """Write a file with torch's exporter that traces a script, or the newer one that exports a program."""
    names: dict[str, Any] = {"input_names": ["image"], "output_names": ["logits"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if exporter == "script":
            axes = {"image": {0: "batch"}, "logits": {0: "batch"}} if free else None
            torch.onnx.export(module, (x,), path, dynamo=False, opset_version=17, dynamic_axes=axes, **names)
        else:
            shapes = ({0: torch.export.Dim("batch")},) if free else None
            torch.onnx.export(
                module, (x,), path, dynamo=True, dynamic_shapes=shapes, external_data=False, verbose=False, **names
            )
    return path


def model_of(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, np.ndarray],
    constants: dict[str, np.ndarray] | None = None,
    opset: int = 21,
    open_batch: bool = False,
) -> onnx.ModelProto:
    """Return a model of some nodes; its outputs are those of the last one."""
    given = [
        helper.make_tensor_value_info(
            name,
            helper.np_dtype_to_tensor_dtype(value.dtype),
            ["batch", *value.shape[1:]] if open_batch else value.shape,
        )
        for name, value in inputs.items()
    ]
    outputs = [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in nodes[-1].output if name]
    tensors = [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()]
    graph = helper.make_graph(nodes, "graph", given, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    inferred = onnx.shape_inference.infer_shapes(model)
    for output in inferred.graph.output:
        kind = output.type.tensor_type
        kind.elem_type = kind.elem_type or TensorProto.FLOAT  # onnx infers nothing for operators that are functions
        kind.ClearField("shape")
    return inferred


def save(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save(model, path)
    return path


def read(path: Path) -> OnnxNetwork:
    """Read a file without comparing it."""
    return network_of(read_float_graph(path))
