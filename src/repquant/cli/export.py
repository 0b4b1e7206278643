"""Write an ONNX file: the float model, or with --calibrator its INT8 form with Q/DQ nodes.

Nothing is measured; `repquant ptq` does the same and proves the result.
"""

from __future__ import annotations

from dataclasses import dataclass

from repquant.cli.console import finish, say, show_configuration
from repquant.cli.options import CalibrationOptions, ImageOptions, MethodOptions, ModelOptions, TargetOptions, option
from repquant.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Options(TargetOptions, MethodOptions, CalibrationOptions, ImageOptions, ModelOptions):
    """Options of `repquant export`."""

    output: str = option("file to write, .onnx")
    overwrite: bool = option("replace the output file if it exists", False)
    data: str = option("folder whose train/ holds the calibration images, or 'builtin'; for INT8 only", "")
    calibrator: str = option("max, percentile, mse or entropy for INT8; nothing for the float model", "")
    target: str = option("runtime that will serve the model: tensorrt, onnxruntime or openvino", "onnxruntime")


def run(options: Options) -> None:
    """Run the verb."""
    show_configuration("export", options)
    from repquant.cli.inputs import (
        kept_names,
        load_deploy_network,
        open_calibration,
        open_method,
        open_target,
        output_file,
        transform,
    )
    from repquant.cli.quantizing import calibrate, quantize
    from repquant.export.onnx import export_onnx
    from repquant.numerics.ranges import CALIBRATORS
    from repquant.quant.calibrate import activation_ranges

    output = output_file(options.output, options.overwrite, (".onnx",))
    if options.calibrator and options.calibrator not in CALIBRATORS:
        raise InputError(f"calibrator {options.calibrator!r} was given; allowed are {', '.join(CALIBRATORS)}")
    if options.calibrator and not (options.data or options.calibration_data):
        raise InputError("INT8 needs images to calibrate on; pass --data or --calibration-data")

    transform(options)  # refuses sizes that are none, also where no image is read
    model = load_deploy_network(options)
    if options.calibrator:
        target, kept = open_target(options), kept_names(options)
        method = open_method(options, target)
        if target.activation.bits < 8:
            raise InputError(
                f"activations of {target.activation.bits} bits can't be exported; leave --activation-bits at 8"
            )
        if target.note:
            say(target.note)
        calibration = open_calibration(options, options, options.data, options.rounding_images)
        calibrated = calibrate(model, method, target, calibration, kept)
        ranges = activation_ranges(options.calibrator, calibrated.histograms, target, percentile=options.percentile)
        model = quantize(calibrated.model, ranges, target, method, calibration, kept)
    size = export_onnx(model, output, options.image_size)
    finish({"output": options.output, "calibrator": options.calibrator or None, "file_bytes": size})
