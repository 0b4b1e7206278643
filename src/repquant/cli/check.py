"""List what a target refuses in a file or runs in another way than in integers, and what to do about it.

The file may come from any tool. Nothing is built: for tensorrt the documented rules are read off the ONNX file;
onnxruntime and openvino are asked for the graph that they execute; litert takes .tflite files, executorch .pte files,
ncnn .param files.
The exit status is 2 where something is refused.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from repquant.choices import TargetName
from repquant.cli.console import finish, say, show_configuration
from repquant.cli.flags import with_flags
from repquant.cli.options import argument
from repquant.errors import InputError
from repquant.option_ranges import option

EXAMPLE = "repquant check model.onnx --target tensorrt"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `repquant check`."""

    file: str = argument("ONNX file; .tflite for litert, .pte for executorch, .param for ncnn")
    target: TargetName = option("runtime that will serve it")


def run(options: Options) -> None:
    """Run the verb."""
    show_configuration("check", options)
    from repquant.check import check

    found = check(options.file, options.target)
    for finding in found:
        say(str(finding))
    refused = sum(finding.is_refused for finding in found)
    if not found:
        say(f"nothing in {options.file} that {options.target} refuses or does not run in integers")
    finish(
        {
            "file": options.file,
            "target": options.target,
            "refused": refused,
            "counts": dict(Counter(finding.rule.severity for finding in found)),
            "findings": [finding.as_dict() | {"remedy": with_flags(finding.rule.remedy)} for finding in found],
        }
    )
    if refused:
        raise InputError(f"{options.target} refuses {options.file}: {refused} findings, see above")
