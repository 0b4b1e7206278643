"""Find out where quantization loses, layer by layer, and what to do about it.

The network is quantized as `ptq` does it, but by default without scaled channels and with weights rounded to the
nearest: so the analysis shows what there is to gain. Each layer then runs quantized alone, and in float alone, on
images of the calibration split that the ranges did not come from; no labels are needed. The output folder holds
analysis.json, analysis.md and figures.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from time import perf_counter
from typing import Literal

from repquant.choices import Calibrator, Equalization, Rounding
from repquant.cli.console import finish, progress, say, show, show_configuration
from repquant.cli.flags import with_flags
from repquant.cli.options import (
    CalibrationOptions,
    DataOptions,
    DeviceOptions,
    FolderOptions,
    MethodOptions,
    NetworkOptions,
    TargetOptions,
    as_in,
)
from repquant.errors import InputError
from repquant.methods.method import PtqMethod
from repquant.option_ranges import POSITIVE_COUNT, option

EXAMPLE = "repquant analyze --arch RepVGG-A0 --weights A0.pth --data FOLDER --target tensorrt --output runs/a0-analysis"


@dataclass(frozen=True, kw_only=True)
class Options(
    FolderOptions, DeviceOptions, TargetOptions, MethodOptions, CalibrationOptions, DataOptions, NetworkOptions
):
    """Options of `repquant analyze`."""

    calibrator: Calibrator = option("what finds the ranges", "mse")
    equalization: Literal["none", Equalization] = as_in(PtqMethod, "equalization", "none")
    rounding: Rounding = as_in(PtqMethod, "rounding", "nearest")
    analysis_images: int = option(
        "images of the calibration split, other ones where it has enough, to compare on", 256, POSITIVE_COUNT
    )


def run(options: Options) -> None:
    """Run the verb."""
    from repquant.cli.inputs import identified

    options = identified(options)
    config = show_configuration("analyze", options)
    from repquant.atomic import new_folder
    from repquant.bench.environment import environment
    from repquant.cli.inputs import (
        hashed_weights,
        kept_names,
        load_graph,
        open_calibration,
        open_method,
        open_target,
        skipped_images,
        transform,
    )
    from repquant.cli.outputs import output_folder
    from repquant.cli.quantizing import ImagesOf, calibrate, plan_for, round_network
    from repquant.data.calibration import draw
    from repquant.data.datasets import open_split
    from repquant.data.loading import Loader
    from repquant.graph.devices import full_precision
    from repquant.methods.sensitivity import measure_sensitivity
    from repquant.report.advice import advice
    from repquant.report.analysis import (
        Analysis,
        headline,
        layer_table,
        markdown_page,
        remarks,
        whole_table,
        write_analysis,
    )
    from repquant.report.figures import CAPTIONS, write_figures
    from repquant.train.distributed import open_device

    target, kept = open_target(options), kept_names(options)
    method = open_method(options, target)
    output = output_folder(options)
    device = open_device(options.device)

    with full_precision(device), new_folder(output, overwrite=options.overwrite, marker="analysis.json") as folder:
        graph = load_graph(options, options.image_size, device)
        source = open_split(options.calibration_data or options.data, "train")
        calibration = open_calibration(options, options, options.data, options.rounding_images)
        wanted = images_to_draw(len(source), options.calibration_images, options.analysis_images)
        shared = options.calibration_images + options.analysis_images - wanted
        chosen = draw(source, wanted, options.seed)[-options.analysis_images :]
        analysis_loader = Loader(
            source, transform(options), options.batch_size, options.workers, options.skip_unreadable, chosen
        )

        timed = calibrate(graph, method, target, calibration, kept)
        plan = plan_for(timed.calibrated, options.calibrator, options.percentile, calibration.ranges.images)
        rounded = round_network(timed.calibrated, plan, calibration)

        started = perf_counter()
        with progress("analyze layers", analysis_loader.images) as advance:
            sensitivity = measure_sensitivity(timed.calibrated.graph, rounded, ImagesOf(analysis_loader), advance)
        done = method if calibration.rounding else replace(method, rounding="nearest")
        analysis = Analysis(
            output=options.output,
            config=config,
            inputs=hashed_weights(options),
            environment=environment(),
            calibration=calibration.record(timed.collect_seconds),
            seconds=perf_counter() - started,
            sensitivity=sensitivity,
            advice=with_flags(advice(sensitivity, done, options.calibrator, target)),
            notes=(
                *remarks(sensitivity),
                *([target.note] if target.note else []),
                *([] if calibration.rounding else ["--rounding-images 0: weights were rounded to the nearest"]),
                *([f"{shared} of the images analyzed were calibrated on: the split has no others"] if shared else []),
            ),
            skipped=skipped_images({"calibration": calibration.ranges, "analysis": analysis_loader}),
        )
        figures = [(f"{name}.svg", CAPTIONS[name]) for name in write_figures(sensitivity, folder)]
        (folder / "analysis.md").write_text(markdown_page(analysis, figures), encoding="utf-8")
        write_analysis(analysis, folder / "analysis.json")
    show(layer_table(analysis))
    show(whole_table(analysis))
    for note in analysis.notes:
        say(note)
    if analysis.skipped:
        say(f"{len(analysis.skipped)} unreadable images were left out; analysis.json names them")
    say(analysis.advice)
    finish(headline(analysis))


def images_to_draw(available: int, calibration: int, analysis: int) -> int:
    """Return how many images to draw so that the last `analysis` of them are other ones than the first `calibration`.

    Where there are not enough, it is all of them, and the two groups overlap.

    Raises:
        InputError: `analysis` is below 1 or above the number of images.
    """
    if not 1 <= analysis <= available:
        raise InputError(f"--analysis-images {analysis} was given; allowed are 1 to {available}, the images there are")
    return min(calibration + analysis, available)
