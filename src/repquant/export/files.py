"""Which files hold a network for a target, and the way to write them: the suffix decides."""

from collections.abc import Sequence
from pathlib import Path

from torch import fx

from repquant.choices import EndType, TargetName
from repquant.errors import InputError
from repquant.export.executorch.network import export_executorch
from repquant.export.file_facts import FileFacts
from repquant.export.litert.network import export_litert
from repquant.export.ncnn.network import export_ncnn
from repquant.export.onnx import export_graph
from repquant.targets.target import Target

ONNX, LITERT, EXECUTORCH, NCNN = ".onnx", ".tflite", ".pte", ".param"
SUFFIXES: dict[TargetName, tuple[str, ...]] = {
    "tensorrt": (ONNX,),
    "onnxruntime": (ONNX, LITERT, EXECUTORCH),
    "openvino": (ONNX,),
    "litert": (LITERT, ONNX, EXECUTORCH),
    "executorch": (EXECUTORCH, ONNX, LITERT),
    "ncnn": (NCNN,),
}
"""Of the files that a target's integers can be written to; the first is what the target itself takes."""


def require_suffix(target: TargetName, suffix: str) -> None:
    """Accept a file that a target's integers can be written to.

    Raises:
        InputError: another suffix.
    """
    if suffix in SUFFIXES[target]:
        return
    allowed = " or ".join(SUFFIXES[target])
    is_for_phones = suffix in (LITERT, EXECUTORCH)
    why = f"; it keeps sums in 32 bits, and a {suffix} file rounds every summand" if is_for_phones else ""
    why = "; ncnn has symmetric activations from -127 to 127 alone" if NCNN in (suffix, *SUFFIXES[target]) else why
    raise InputError(f"{suffix or 'no suffix'} was given; files for target {target} end in {allowed}{why}")


def export_file(
    graph: fx.GraphModule,
    path: Path,
    target: Target | None = None,
    *,
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
    facts: FileFacts | None = None,
    batch: int | None = None,
    input_type: EndType = "float32",
    output_type: EndType = "float32",
) -> int:
    """Write a captured network to `path`, and return its size in bytes.

    Args:
        graph: from `capture`, or simulated, on the CPU.
        path: ends in `.onnx`, `.tflite`, `.pte` or `.param`; it appears only when it is complete.
        target: of a simulated network; None for a float one.
        inputs: names of the inputs, in their order.
        outputs: names of the outputs, in their order.
        facts: what an ONNX file says of itself.
        batch: number of images that a .tflite or .pte file takes; None for any, in a .pte or .param file one after the
            other.
        input_type: what a .tflite file takes.
        output_type: what a .tflite file gives.

    Raises:
        InputError: a file that does not fit the target, settings of another kind of file, an operator that
            the file can't hold, or a folder that can't be written.
    """
    if target is not None:
        require_suffix(target.name, path.suffix)
    if path.suffix == LITERT:
        return export_litert(
            graph,
            path,
            inputs=inputs,
            outputs=outputs,
            batch=batch,
            input_type=input_type,
            output_type=output_type,
        )
    if (input_type, output_type) != ("float32", "float32"):
        raise InputError(f"{path} takes and gives floats; integer ends are for .tflite files")
    if path.suffix == EXECUTORCH:
        return export_executorch(graph, path, inputs=inputs, outputs=outputs, batch=batch)
    if path.suffix == NCNN:
        return export_ncnn(graph, path, inputs=inputs, outputs=outputs, batch=batch)
    if batch is not None:
        raise InputError(f"{path} takes any batch; a fixed one is for .tflite and .pte files")
    return export_graph(graph, path, target, inputs=inputs, outputs=outputs, facts=facts)
