"""Quantize a trained network to INT8, export it, and measure it on the runtimes that will serve it.

The weights are re-parameterized first if the checkpoint has branches. One pass over the calibration images serves all
calibrators; a second one, for each of them, gives quantized layers the means that they have in float. The output folder
holds one ONNX file for each calibrator, the float one, and result.json.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from repquant.cli.console import finish, progress, say, show, show_configuration
from repquant.cli.options import (
    CalibrationOptions,
    DataOptions,
    FolderOptions,
    ModelOptions,
    TargetOptions,
    option,
    split_names,
)


@dataclass(frozen=True, kw_only=True)
class Options(FolderOptions, TargetOptions, CalibrationOptions, DataOptions, ModelOptions):
    """Options of `repquant ptq`."""

    calibrator: str = option("max, percentile, mse, entropy, several with commas, or all", "all")
    runtimes: str = option(
        "what executes the model: pytorch (the simulation), onnxruntime, openvino, with commas, or all",
        "pytorch,onnxruntime,openvino",
    )


def run(options: Options) -> None:
    """Run the verb."""
    config = show_configuration("ptq", options)
    import torch

    from repquant.atomic import new_folder
    from repquant.bench.environment import environment
    from repquant.cli.inputs import (
        file_sha256,
        kept_names,
        load_deploy_network,
        open_calibration,
        open_loader,
        open_target,
        weights_path,
    )
    from repquant.cli.proof import prove
    from repquant.numerics.ranges import CALIBRATORS
    from repquant.quant.bias_correction import correct_biases
    from repquant.quant.calibrate import activation_ranges, collect_histograms
    from repquant.quant.convert import quantize_model
    from repquant.report.record import CalibrationRecord, Record, headline, write_record
    from repquant.report.tables import COMPARISON, screen_table
    from repquant.runtimes.available import ENGINES, require

    calibrators = split_names(options.calibrator, CALIBRATORS, "calibrator")
    runtimes = split_names(options.runtimes, tuple(ENGINES), "runtimes")
    for name in runtimes:
        require(name)
    target = open_target(options)
    output = Path(options.output)

    with new_folder(output, overwrite=options.overwrite, marker="result.json") as folder:
        model = load_deploy_network(options)
        evaluation = open_loader(options, "val", options.num_classes)
        calibration = open_calibration(options, options, options.data)
        kept = kept_names(options)

        started = perf_counter()
        with progress("calibrate", calibration.ranges.images) as advance:
            images = (batch.images for batch in calibration.ranges)
            histograms = collect_histograms(model, images, kept, on_batch=advance)
        collect_seconds = perf_counter() - started

        quantized: dict[str, torch.nn.Module] = {}
        search_seconds = {}
        correction_seconds = 0.0
        for calibrator in calibrators:
            started = perf_counter()
            ranges = activation_ranges(calibrator, histograms, target, percentile=options.percentile)
            search_seconds[calibrator] = perf_counter() - started
            quantized[calibrator] = quantize_model(model, ranges, target, kept)
            if calibration.biases is not None:
                started = perf_counter()
                with progress(f"correct biases, {calibrator}", calibration.biases.images) as advance:
                    images = (batch.images for batch in calibration.biases)
                    corrected = correct_biases(model, quantized[calibrator], images, on_batch=advance)
                quantized[calibrator] = quantize_model(corrected, ranges, target, kept)
                correction_seconds += perf_counter() - started
        searches = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in search_seconds.items())
        cost = (
            f"calibration: one pass over {calibration.ranges.images} images {collect_seconds:.1f} s; "
            f"searches: {searches}; bias correction: {correction_seconds / len(calibrators):.1f} s a calibrator"
        )
        say(cost)

        proof = prove(model, quantized, evaluation, runtimes, options.image_size, folder, output)
        record = Record(
            command="ptq",
            output=options.output,
            config=config,
            inputs={"weights": file_sha256(weights_path(options))},
            environment=environment(),
            calibration=CalibrationRecord(
                images=options.calibration_images,
                seed=options.seed,
                sha256=calibration.subset.sha256,
                seconds=collect_seconds,
            ),
            notes=tuple(note for note in (cost, target.note) if note),
            skipped={
                f"{role}: {name}": reason
                for role, loader in (("calibration", calibration.ranges), ("evaluation", evaluation))
                for name, reason in loader.skipped.items()
            },
            float_row=proof.float_row,
            results=proof.rows,
        )
        write_record(record, folder / "result.json")
    show(screen_table(record, COMPARISON))
    for note in record.notes[1:]:
        say(note)
    if record.skipped:
        say(f"{len(record.skipped)} unreadable images were left out; result.json names them")
    finish(headline(record))
