"""What a target refuses in a file, or runs in another way than in integers, and why."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from repquant.errors import InputError

if TYPE_CHECKING:
    from repquant.targets.finding import Finding

CHECKED_TARGETS = ("tensorrt", "onnxruntime", "openvino", "litert")


def check(path: str | PathLike[str], target: str) -> tuple[Finding, ...]:
    """Return what was found in a file, ours or anybody's, the worst first.

    TensorRT is not needed: its rules are read off the file. ONNX Runtime, OpenVINO and LiteRT are asked for what they
    execute, on this CPU.

    Args:
        path: of the file, .tflite for "litert" and ONNX for the others.
        target: "tensorrt", "onnxruntime", "openvino" or "litert".

    Raises:
        InputError: another target, or one that is not installed; another kind of file, a damaged one, or tensors of it
            that are missing.
    """
    from repquant.runtimes.available import require, require_kind
    from repquant.runtimes.cpu import int8_support
    from repquant.targets import litert, onnxruntime, openvino, tensorrt
    from repquant.targets.finding import SEVERITIES
    from repquant.targets.litert_file import read_litert
    from repquant.targets.onnx_graph import read_graph

    if target not in CHECKED_TARGETS:
        raise InputError(f"target {target!r} was given; allowed are {', '.join(CHECKED_TARGETS)}")
    require_kind(target, Path(path))
    if target == "litert":
        require(target)
        found = litert.find(Path(path), read_litert(Path(path)))
    elif target == "tensorrt":
        found = tensorrt.find(read_graph(Path(path)))
    else:
        graph = read_graph(Path(path))
        require(target)
        engine = onnxruntime if target == "onnxruntime" else openvino
        found = engine.find(graph, has_exact_products=int8_support().safe)
    return tuple(sorted(found, key=lambda finding: SEVERITIES.index(finding.rule.severity)))


def require_taken(path: Path, target: str) -> None:
    """Look at a file that this program wrote for a target, before anybody else does.

    Args:
        path: of the file. That of a target may also be written for another runtime, which is then asked: LiteRT for a
            .tflite file, ONNX Runtime for an ONNX file of the target litert.
        target: it was written for; where only its runtime could tell, and that is not installed, nobody is asked.

    Raises:
        AssertionError: the target would refuse it: an error of this program.
    """
    from repquant.runtimes.available import installed

    if path.suffix == ".tflite":
        target = "litert"
    elif target == "litert":
        target = "onnxruntime"
    if target != "tensorrt" and target not in installed():
        return
    refused = [str(finding) for finding in check(path, target) if finding.is_refused]
    assert not refused, f"{path} was written for {target}, which refuses it; please report this: {'; '.join(refused)}"
