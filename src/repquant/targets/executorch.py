"""What of a .pte file ExecuTorch refuses, computes in float, or runs without XNNPACK."""

from collections import Counter
from pathlib import Path
from typing import Any

from repquant.targets.cpu_rules import not_loaded
from repquant.targets.executorch_file import FORWARD, ExecutorchProgram, importing
from repquant.targets.finding import Finding, Rule

LOADS = Rule(
    name="loads",
    severity="refused",
    source="ExecuTorch itself",
    remedy="see its message",
)
BACKEND = Rule(
    name="backend",
    severity="inexact",
    source="names of the delegates in the file",
    remedy="prove it on a device that has this backend, or lower the network for XNNPACK",
)
INTEGER_OPERATOR = Rule(
    name="integer-operator",
    severity="runs in float",
    source="types of the values in XNNPACK's part of the file",
    remedy="quantize all inputs and the output of the operator, or leave it: what is around it runs in integers",
)
NOT_DELEGATED = Rule(
    name="not-delegated",
    severity="slower",
    source="calls of kernels in the file",
    remedy="nothing has to be done where the program on the device holds this kernel; it computes in float",
)
_MOVING = ("StaticReshape", "StaticTranspose")  # at the ends of a file, where images are not channels last

RULES = (LOADS, BACKEND, INTEGER_OPERATOR, NOT_DELEGATED)


def find(path: Path, program: ExecutorchProgram) -> list[Finding]:
    """Return what does not meet a rule.

    Args:
        path: of the file.
        program: that it holds.
    """
    found = [
        Finding(rule=BACKEND, node=backend, detail=f"{backend} runs a part of it, which was not looked at")
        for backend in dict.fromkeys(program.backends)
    ]
    computing = (node.kind for node in program.nodes if node.is_float and node.kind not in _MOVING)
    for kind, count in Counter(computing).items():
        found.append(Finding(rule=INTEGER_OPERATOR, node=kind, detail=f"XNNPACK runs it {_times(count)} on floats"))
    for kernel, count in Counter(program.kernels).items():
        detail = f"XNNPACK does not have it; a kernel of ExecuTorch's own runs it {_times(count)}"
        found.append(Finding(rule=NOT_DELEGATED, node=kernel, detail=detail))
    try:
        load_method(path)
    except RuntimeError as error:
        return [not_loaded(LOADS, error), *found]
    return found


def load_method(path: Path) -> Any:
    """Return the method `forward` of a file, ready to be executed.

    Raises:
        RuntimeError: ExecuTorch does not take it.
    """
    with importing():
        from executorch.runtime import Runtime
    return Runtime.get().load_program(path).load_method(FORWARD)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
