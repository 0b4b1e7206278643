"""A network of functional operators as torch's exporter writes it to ONNX, traced once."""

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import onnx
import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.fx.experimental import _config
from torch.onnx._internal.exporter import _core, _registration

from repquant.graph.arguments import arguments

aten = torch.ops.aten
_TRANSPOSED = {aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input}


def trace_to_onnx(model: nn.Module, example: tuple[Tensor, ...], *, dynamic_batch: bool, opset: int) -> onnx.ModelProto:
    """Return the model that computes what a network in evaluation mode does; inputs and outputs have placeholder names.

    `torch.onnx.export` traces a network a second time, to replace the operators that it can't translate, and builds its
    table of translations anew in each call. Both take longer than all else. A captured network rarely has such
    operators, so that the second trace is left out where it would change nothing. The exporter's entry that takes a
    table is not public; its arguments are those of the public one.

    Args:
        model: of functional operators alone.
        example: its inputs; at least two images where the batch is to be dynamic.
        dynamic_batch: whether dimension 0 of all inputs is free.
        opset: the version of the operators in the file.
    """
    batch = torch.export.Dim("batch")
    shapes = tuple({0: batch} for _ in example) if dynamic_batch else None
    with _quiet():
        # As torch.onnx.export does: no size is taken for 0 or 1.
        with _config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
            program = torch.export.export(model, example, dynamic_shapes=shapes, strict=False)
        program.__class__ = _Functional
        assert isinstance(program, _Functional)
        program.translations = _translations(opset)
        _replace_operators(program.graph)
        outputs = len(program.graph_signature.user_outputs)
        written = _core.export(
            program,
            registry=program.translations,
            opset_version=opset,
            input_names=[f"_input_{index}" for index in range(len(example))],
            output_names=[f"_output_{index}" for index in range(outputs)],
            verbose=False,
        )
    proto: onnx.ModelProto = written.model_proto
    if dynamic_batch:
        _name_batch(proto.graph)
    return proto


class _Functional(ExportedProgram):
    """A program whose operators are functional: it is traced again only for operators that have to be replaced."""

    translations: Any

    def run_decompositions(self, decomp_table: dict[Any, Any] | None = None, **options: Any) -> ExportedProgram:
        """Replace operators in a table or without a translation; return the program itself where it has none."""
        called = {node.target for node in self.graph.nodes if node.op == "call_function"}
        unknown = {
            each
            for each in called
            if isinstance(each, OpOverload) and each.namespace == "aten" and not self.translations.is_registered(each)
        }
        if decomp_table is not None and not unknown and called.isdisjoint(decomp_table):
            return self
        replaced: ExportedProgram = super().run_decompositions(decomp_table, **options)
        return replaced


def _replace_operators(graph: fx.Graph) -> None:
    """Write frequent operators, in place, as those that the exporter would trace the network again for."""
    for node in graph.nodes:
        if node.target is aten.adaptive_avg_pool2d.default and list(node.args[1]) == [1, 1]:
            node.target, node.args = aten.mean.dim, (node.args[0], [-1, -2], True)
        elif node.target in _TRANSPOSED:
            values = arguments(node)
            x, weight, bias, *geometry, output_padding, groups, dilation = values.values()
            node.target, node.kwargs = aten.convolution.default, {}
            node.args = (x, weight, bias, *geometry, dilation, True, output_padding, groups)


def _name_batch(graph: onnx.GraphProto) -> None:
    """Call the batch `batch` in all shapes, in place, where the exporter has a symbol of its own for it."""
    symbol = re.compile(rf"\b{graph.input[0].type.tensor_type.shape.dim[0].dim_param}\b")
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param:
                dimension.dim_param = symbol.sub("batch", dimension.dim_param)


@cache
def _translations(opset: int) -> Any:
    return _registration.ONNXRegistry.from_torchlib(opset)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's remarks on packages that it doesn't need and on its own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
