"""Walk the whole path on data and weights that ship with the package: a small RepVGG on Fashion-MNIST.

It converts the checkpoint, calibrates with every calibrator, exports, runs the result in ONNX Runtime and OpenVINO, as
far as they are installed, and prints what was lost. Then it looks for where plain rounding loses, and writes a page
about all of it, report.html in the output folder.
"""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repquant.choices import TargetName
from repquant.cli.console import say
from repquant.option_ranges import option

EXAMPLE = "repquant demo"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `repquant demo`."""

    target: TargetName = option("runtime that will serve the model", "onnxruntime")
    output: str = option("folder to write", "runs/demo")
    overwrite: bool = option("replace the output folder if it exists", True)


def run(options: Options) -> None:
    """Run the verb."""
    from repquant.cli import analyze, ptq, report
    from repquant.models.zoo import BUILTIN_ARCH, BUILTIN_CLASSES, BUILTIN_IMAGE_SIZE
    from repquant.report.run import read_runs

    builtin: dict[str, Any] = {
        "arch": BUILTIN_ARCH,
        "num_classes": BUILTIN_CLASSES,
        "weights": "builtin",
        "data": "builtin",
        "image_size": BUILTIN_IMAGE_SIZE,
        "crop_ratio": 1.0,
        "batch_size": 100,
        "target": options.target,
    }
    ptq.run(ptq.Options(**builtin, output=options.output, overwrite=options.overwrite))
    folder = Path(options.output)
    with redirect_stdout(sys.stderr):  # the last line of stdout is that of ptq
        analyze.run(analyze.Options(**builtin, output=str(folder / "analysis")))
        report.write_page(read_runs([folder]), folder / "report.html")
    say(f"the page about it: {folder / 'report.html'}")
