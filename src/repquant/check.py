"""What a target refuses in a file, or runs in another way than in integers, and why."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from repquant.choices import TARGETS
from repquant.errors import InputError

if TYPE_CHECKING:
    from repquant.targets.finding import Finding


def check(path: str | PathLike[str], target: str) -> tuple[Finding, ...]:
    """Return what was found in an ONNX file, ours or anybody's, the worst first.

    TensorRT is not needed: its rules are read off the file. ONNX Runtime and OpenVINO are asked for the graph that they
    execute, on this CPU.

    Args:
        path: of the file.
        target: "tensorrt", "onnxruntime" or "openvino".

    Raises:
        InputError: another target, or one that is not installed; no ONNX file, or tensors of it that are missing.
    """
    from repquant.runtimes.available import require
    from repquant.runtimes.cpu import int8_support
    from repquant.targets import onnxruntime, openvino, tensorrt
    from repquant.targets.finding import SEVERITIES
    from repquant.targets.onnx_graph import blaming_the_file, read_graph

    if target not in TARGETS:
        raise InputError(f"target {target!r} was given; allowed are {', '.join(TARGETS)}")
    graph = read_graph(Path(path))
    if target != "tensorrt":
        require(target)
    with blaming_the_file(Path(path), graph.model):
        if target == "tensorrt":
            found = tensorrt.find(graph)
        else:
            engine = onnxruntime if target == "onnxruntime" else openvino
            found = engine.find(graph, has_exact_products=int8_support().safe)
    return tuple(sorted(found, key=lambda finding: SEVERITIES.index(finding.rule.severity)))


def require_taken(path: Path, target: str) -> None:
    """Look at a file that this program wrote for a target, before anybody else does.

    Args:
        path: of the file.
        target: it was written for; where only its runtime could tell, and that is not installed, nobody is asked.

    Raises:
        AssertionError: the target would refuse it: an error of this program.
    """
    from repquant.runtimes.available import installed

    if target != "tensorrt" and target not in installed():
        return
    refused = [str(finding) for finding in check(path, target) if finding.is_refused]
    assert not refused, f"{path} was written for {target}, which refuses it; please report this: {'; '.join(refused)}"
