"""Quantize a trained network to INT8, export it, and measure it on the runtimes that will serve it.

The weights are re-parameterized first if the checkpoint has branches, and the channels scaled so that rounding loses
less. One pass over the calibration images serves all calibrators; for each of them the weights are then rounded with
error feedback. The output folder holds one ONNX file for each calibrator, the float one, and result.json.

The method of other tools is --equalization none --rounding nearest --rounding-images 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

from repquant.choices import CALIBRATORS
from repquant.cli.console import finish, say, show_configuration
from repquant.cli.options import (
    CALIBRATOR_NAMES,
    CalibrationOptions,
    DataOptions,
    DeviceOptions,
    FolderOptions,
    MethodOptions,
    MixedPrecisionOptions,
    NetworkOptions,
    ProofOptions,
    TargetOptions,
)
from repquant.option_ranges import option

if TYPE_CHECKING:
    from pathlib import Path

    from torch import fx

    from repquant.cli.inputs import Calibration
    from repquant.methods.method import PtqMethod
    from repquant.targets.target import Target

EXAMPLE = "repquant ptq --arch RepVGG-A0 --weights A0.pth --data FOLDER --target tensorrt --output runs/a0"


@dataclass(frozen=True, kw_only=True)
class Options(
    FolderOptions,
    DeviceOptions,
    ProofOptions,
    MixedPrecisionOptions,
    TargetOptions,
    MethodOptions,
    CalibrationOptions,
    DataOptions,
    NetworkOptions,
):
    """Options of `repquant ptq`."""

    calibrator: str = option(
        "what finds the ranges, a file each; all: those that read histograms, which loss-aware does not alone",
        "all",
        CALIBRATOR_NAMES,
    )
    benchmark: bool = option("measure latency too, beside the float file in the same runtime", False)


def run(options: Options) -> None:
    """Run the verb."""
    from repquant.cli.inputs import identified

    options = identified(options)
    config = show_configuration("ptq", options)

    from repquant.atomic import new_folder
    from repquant.cli.inputs import load_graph, open_calibration, open_loader, open_method, open_target, skipped_images
    from repquant.cli.outputs import output_folder
    from repquant.cli.proof import prove, proving_runtimes
    from repquant.cli.quantizing import open_average_bits
    from repquant.cli.recording import choice, record_of, tell
    from repquant.graph.devices import full_precision
    from repquant.report.record import headline, write_record
    from repquant.train.distributed import open_device

    calibrators = CALIBRATOR_NAMES.split(options.calibrator, CALIBRATORS)
    target = open_target(options)
    average_bits = open_average_bits(options, target)
    runtimes = proving_runtimes(options.runtimes, target)
    method = open_method(options, target)
    output = output_folder(options)
    device = open_device(options.device)
    checkpoints = {}
    if method.rounding == "learned" and options.rounding_images > 0:
        # Beside the output folder, which appears only at the end: what has been learned survives an interruption.
        checkpoints = {name: output.with_name(f"{output.name}.{name}.rounding") for name in calibrators}
        say(f"finished layers are kept in {output}.*.rounding: the same command goes on from there")

    with full_precision(device), new_folder(output, overwrite=options.overwrite, marker="result.json") as folder:
        graph = load_graph(options, options.image_size, device)
        evaluation = open_loader(options, "val", options.num_classes)
        calibration = open_calibration(options, options, options.data, options.rounding_images)
        made = _quantize(graph, options, method, target, calibration, calibrators, checkpoints, average_bits)
        say(made.cost)
        proof = prove(
            graph,
            made.networks,
            evaluation,
            calibration,
            runtimes,
            folder,
            output,
            target,
            benchmark=options.benchmark,
        )
        record = record_of(
            "ptq",
            options,
            config,
            proof,
            target=target,
            output=options.output,
            calibration=calibration,
            evaluation=evaluation,
            skipped=skipped_images({"calibration": calibration.ranges, "evaluation": evaluation}),
            weight_bits=made.weight_bits,
            notes=[made.cost, *made.outliers, *made.notes],
            calibration_seconds=made.collect_seconds,
            work_seconds=made.seconds,
        )
        write_record(record, folder / "result.json")
    for checkpoint in checkpoints.values():
        checkpoint.unlink(missing_ok=True)
    tell(record, already_said=1 + len(made.outliers))
    say(choice(record))
    finish(headline(record))


@dataclass(frozen=True, kw_only=True)
class _Made:
    """Calibrator -> simulated network, the bits of layers where they differ, and sentences on images and cost."""

    networks: dict[str, fx.GraphModule]
    weight_bits: Mapping[str, int]
    outliers: tuple[str, ...]
    notes: tuple[str, ...]
    cost: str
    collect_seconds: float
    seconds: float


def _quantize(
    graph: fx.GraphModule,
    options: Options,
    method: PtqMethod,
    target: Target,
    calibration: Calibration,
    calibrators: Sequence[str],
    checkpoints: Mapping[str, Path],
    average_bits: float | None,
) -> _Made:
    """Calibrate once, and round the weights for the ranges of each calibrator."""
    from repquant.cli.inputs import kept_names
    from repquant.cli.quantizing import calibrate, check_checkpoints, plan_for, round_network, with_average_bits
    from repquant.cli.recording import bits_notes, outlier_notes

    timed = calibrate(graph, method, target, calibration, kept_names(options), average_bits)
    plans = {}
    searches = {}
    for calibrator in calibrators:
        started = perf_counter()
        plans[calibrator] = plan_for(timed.calibrated, calibrator, options.percentile, calibration.ranges.images)
        searches[calibrator] = perf_counter() - started
    started = perf_counter()
    if average_bits is not None:
        plans = with_average_bits(timed.calibrated, plans, calibration, average_bits)
    choosing_seconds = perf_counter() - started
    started = perf_counter()
    if calibration.rounding:
        check_checkpoints(timed.calibrated, plans, calibration.rounding, checkpoints)
    networks = {
        name: round_network(timed.calibrated, plan, calibration, name, checkpoints.get(name)).simulated()
        for name, plan in plans.items()
    }
    rounding_seconds = perf_counter() - started
    rounding = method.rounding if calibration.rounding else "nearest"
    chosen = "" if average_bits is None else f"bits of each layer: {choosing_seconds:.1f} s; "
    plan = plans[calibrators[0]]
    searched = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in searches.items())
    return _Made(
        networks=networks,
        weight_bits=plan.weight_bits,
        outliers=outlier_notes(timed.calibrated, calibration),
        notes=bits_notes(timed.calibrated.graph, plan),
        cost=(
            f"equalization {method.equalization}: {timed.prepare_seconds:.1f} s; calibration: one pass over "
            f"{calibration.images_read} images {timed.collect_seconds:.1f} s; searches: {searched}; "
            f"{chosen}rounding {rounding}: {rounding_seconds / len(calibrators):.1f} s a calibrator"
        ),
        collect_seconds=timed.collect_seconds,
        seconds=timed.seconds + sum(searches.values()) + choosing_seconds + rounding_seconds,
    )
