"""A float or quantized model as an ONNX file."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import torch
from torch import nn

from repquant.atomic import replace_file
from repquant.export.integer_graph import integer_graph
from repquant.export.shared_quantizers import share_quantizers

OPSET = 21
INPUT_NAME = "images"
OUTPUT_NAME = "logits"


def export_onnx(model: nn.Module, path: Path, image_size: int | tuple[int, int]) -> int:
    """Write `model` to `path` as ONNX with a dynamic batch, checked, and return its size in bytes.

    The graph maps `images` (N, 3, H, W), float32 and normalized, to `logits` (N, K). Quantized modules become Q/DQ
    pairs; their weights are stored as int8, their biases as int32 with scale s_x * s_w.

    Args:
        model: deploy model, float or quantized, on the CPU.
        path: file to write; it appears only when it is complete.
        image_size: side, or (height, width), of the images in pixels.

    Raises:
        InputError: the folder of `path` can't be written.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    # Two images: the exporter takes a dimension of 1 for a constant.
    example = torch.zeros(2, 3, height, width)
    with _quiet_exporter():
        program = torch.onnx.export(
            integer_graph(model).eval(),
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT_NAME],
            output_names=[OUTPUT_NAME],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    assert program is not None, "the exporter returns a program when it is given no file"
    proto = share_quantizers(program.model_proto)
    _strip_provenance(proto)
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


@contextmanager
def _quiet_exporter() -> Iterator[None]:
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
