"""Write an ONNX, .tflite, .pte or .param file: the float model, or with --calibrator its INT8 form.

Nothing is measured; `repquant ptq` does the same and proves the result.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from repquant.choices import Calibrator, EndType, TargetName
from repquant.cli.console import finish, say, show_configuration
from repquant.cli.flags import flag_of
from repquant.cli.options import CalibrationOptions, ImageOptions, MethodOptions, NetworkOptions, TargetOptions
from repquant.errors import InputError
from repquant.option_ranges import COUNT, option

if TYPE_CHECKING:
    from torch import fx

    from repquant.targets.target import Target

INT8_ONLY = {field.name for kind in (TargetOptions, MethodOptions, CalibrationOptions) for field in fields(kind)} | {
    "data"
}


EXAMPLE = (
    "repquant export --arch RepVGG-A0 --weights A0.pth "
    "--data FOLDER --target openvino --calibrator mse --output a0.onnx"
)


@dataclass(frozen=True, kw_only=True)
class Options(TargetOptions, MethodOptions, CalibrationOptions, ImageOptions, NetworkOptions):
    """Options of `repquant export`."""

    output: str = option("file to write, .onnx, .tflite for LiteRT, .pte for ExecuTorch or .param for ncnn")
    overwrite: bool = option("replace the output file if it exists", False)
    data: str = option("folder whose train/ holds the calibration images, or 'builtin'; for INT8 only", "")
    batch: int = option("for .tflite and .pte: images that the file takes; 0 for any number", 0, COUNT)
    input_type: EndType = option("for .tflite: what the file takes", "float32")
    output_type: EndType = option("for .tflite: what the file gives", "float32")
    calibrator: Literal["", Calibrator] = option("for INT8; without it, the float model is written", "")
    target: TargetName = option("runtime that will serve the model", "onnxruntime")


def run(options: Options) -> None:
    """Run the verb."""
    from repquant.cli.inputs import identified

    options = identified(options)
    show_configuration("export", options)
    from repquant.check import require_taken
    from repquant.cli.inputs import load_graph, open_target, transform
    from repquant.cli.outputs import output_file
    from repquant.export.file_facts import FileFacts
    from repquant.export.files import EXECUTORCH, LITERT, NCNN, ONNX, export_file, require_suffix
    from repquant.export.onnx import INPUT_NAME, OUTPUT_NAME
    from repquant.targets.executorch_file import read_executorch

    output = output_file(options, (ONNX, LITERT, EXECUTORCH, NCNN))
    _check(options)
    made = transform(options)  # refuses sizes that are none, also where no image is read
    facts = FileFacts(
        image_size=options.image_size,
        crop_ratio=made.crop_ratio,
        mean=made.mean,
        std=made.std,
        calibrator=options.calibrator or None,
    )
    graph = load_graph(options, options.image_size)
    # Beside the output, which appears only at the end: what has been learned survives an interruption.
    checkpoint = output.with_name(f"{output.name}.{options.calibrator}.rounding")
    target: Target | None = None
    skipped: dict[str, str] = {}
    if options.calibrator:
        target = open_target(options)
        require_suffix(target.name, output.suffix)
        graph, skipped = _quantize(graph, options, target, checkpoint)
    size = export_file(
        graph,
        output,
        target,
        inputs=(INPUT_NAME,),
        outputs=(OUTPUT_NAME,),
        facts=facts,
        batch=options.batch or None,
        input_type=options.input_type,
        output_type=options.output_type,
    )
    if target:
        require_taken(output, target.name)
    if output.suffix == EXECUTORCH:
        say(read_executorch(output).delegation())
    if options.calibrator and options.rounding == "learned":
        checkpoint.unlink(missing_ok=True)
    if skipped:
        say(f"{len(skipped)} unreadable images were left out: {', '.join(skipped)}")
    finish(
        {
            "output": options.output,
            "calibrator": options.calibrator or None,
            "skipped": len(skipped),
            "file_bytes": size,
        }
    )


def _check(options: Options) -> None:
    """Refuse what would be ignored or noticed late."""
    if not options.calibrator:
        settings = [field for field in fields(options) if field.name in INT8_ONLY]
        given = [field.name for field in settings if getattr(options, field.name) != field.default]
        if given:
            names = ", ".join(map(flag_of, given))
            raise InputError(
                f"{names}: for INT8 only, and without --calibrator the float model is written; pass --calibrator, for "
                "example mse, or leave them out"
            )
        return
    if not (options.data or options.calibration_data):
        raise InputError("INT8 needs images to calibrate on; pass --data or --calibration-data")
    if options.activation_bits < 8:
        raise InputError(
            f"activations of {options.activation_bits} bits can't be exported; leave --activation-bits at 8"
        )


def _quantize(
    graph: fx.GraphModule, options: Options, target: Target, checkpoint: Path
) -> tuple[fx.GraphModule, dict[str, str]]:
    """Return the simulated network, and the unreadable calibration images with the reason for each."""
    from repquant.cli.inputs import kept_names, open_calibration, open_method, skipped_images
    from repquant.cli.quantizing import calibrate, plan_for, round_network

    method = open_method(options, target)
    if target.note:
        say(target.note)
    calibration = open_calibration(options, options, options.data, options.rounding_images)
    if method.rounding == "learned" and calibration.rounding:
        say(f"finished layers are kept in {checkpoint}: the same command goes on from there")
    calibrated = calibrate(graph, method, target, calibration, kept_names(options)).calibrated
    plan = plan_for(calibrated, options.calibrator, options.percentile, calibration.ranges.images)
    rounded = round_network(calibrated, plan, calibration, checkpoint=checkpoint)
    return rounded.simulated(), skipped_images({"calibration": calibration.ranges})
