"""Walk the whole path on data and weights that ship with the package: a small RepVGG on Fashion-MNIST.

It converts the checkpoint, calibrates with every calibrator, exports, runs the result in ONNX Runtime and OpenVINO and
prints what was lost.
"""

from __future__ import annotations

from dataclasses import dataclass

from repquant.cli.options import option


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `repquant demo`."""

    target: str = option("runtime that will serve the model: tensorrt, onnxruntime, openvino or litert", "onnxruntime")
    output: str = option("folder to write", "runs/demo")
    overwrite: bool = option("replace the output folder if it exists", True)


def run(options: Options) -> None:
    """Run the verb."""
    from repquant.cli import ptq
    from repquant.models.zoo import BUILTIN_ARCH, BUILTIN_CLASSES, BUILTIN_IMAGE_SIZE

    ptq.run(
        ptq.Options(
            arch=BUILTIN_ARCH,
            num_classes=BUILTIN_CLASSES,
            weights="builtin",
            data="builtin",
            image_size=BUILTIN_IMAGE_SIZE,
            crop_ratio=1.0,
            batch_size=100,
            target=options.target,
            output=options.output,
            overwrite=options.overwrite,
        )
    )
