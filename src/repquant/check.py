"""What a target refuses in a file, or runs in another way than in integers, and why."""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from repquant.choices import TARGETS
from repquant.errors import InputError

if TYPE_CHECKING:
    from repquant.targets.finding import Finding


def check(path: str | PathLike[str], target: str) -> tuple[Finding, ...]:
    """Return what was found in a file, ours or anybody's, the worst first.

    TensorRT is not needed: its rules are read off the file. ONNX Runtime, OpenVINO, LiteRT and ExecuTorch are asked for
    what they execute, on this CPU; ncnn, whether it loads the file.

    Args:
        path: of the file, .tflite for "litert", .pte for "executorch", .param for "ncnn" (its .bin file lies beside it)
            and ONNX for the others.
        target: "tensorrt", "onnxruntime", "openvino", "litert", "executorch" or "ncnn".

    Raises:
        InputError: another target, or one that is not installed; another kind of file, a damaged one, or tensors of it
            that are missing.
    """
    from repquant.runtimes.available import require, require_kind
    from repquant.runtimes.cpu import int8_support
    from repquant.targets import executorch, litert, ncnn, onnxruntime, openvino, tensorrt
    from repquant.targets.executorch_file import read_executorch
    from repquant.targets.litert_file import read_litert
    from repquant.targets.ncnn_file import read_ncnn
    from repquant.targets.onnx_graph import blaming_the_file, read_graph

    if target not in TARGETS:
        raise InputError(f"target {target!r} was given; allowed are {', '.join(TARGETS)}")
    file = Path(path)
    require_kind(target, file)
    if target == "litert":
        require(target)
        return _worst_first(litert.find(file, read_litert(file)))
    if target == "executorch":
        require(target)
        return _worst_first(executorch.find(file, read_executorch(file)))
    if target == "ncnn":
        require(target)
        return _worst_first(ncnn.find(file, read_ncnn(file)))
    graph = read_graph(file)
    if target != "tensorrt":
        require(target)
    with blaming_the_file(file, graph.model):
        if target == "tensorrt":
            found = tensorrt.find(graph)
        else:
            engine = onnxruntime if target == "onnxruntime" else openvino
            found = engine.find(graph, has_exact_products=int8_support().safe)
    return _worst_first(found)


def _worst_first(found: Iterable[Finding]) -> tuple[Finding, ...]:
    from repquant.targets.finding import SEVERITIES

    return tuple(sorted(found, key=lambda finding: SEVERITIES.index(finding.rule.severity)))


def require_taken(path: Path, target: str) -> None:
    """Look at a file that this program wrote for a target, before anybody else does.

    Args:
        path: of the file. That of a target may also be written for another runtime, which is then asked: LiteRT for a
            .tflite file, ExecuTorch for a .pte file, ONNX Runtime for an ONNX file of these two. Nobody else runs what
            is written for ncnn.
        target: it was written for; where only its runtime could tell, and that is not installed, nobody is asked.

    Raises:
        AssertionError: the target would refuse it: an error of this program.
    """
    from repquant.runtimes.available import installed

    if path.suffix == ".tflite":
        target = "litert"
    elif path.suffix == ".pte":
        target = "executorch"
    elif target in ("litert", "executorch"):
        target = "onnxruntime"
    if target != "tensorrt" and target not in installed():
        return
    refused = [str(finding) for finding in check(path, target) if finding.is_refused]
    assert not refused, f"{path} was written for {target}, which refuses it; please report this: {'; '.join(refused)}"
