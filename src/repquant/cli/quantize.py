"""Quantize to INT8 and lose at most --max-drop points of top-1: the one command for a result.

It tries the cheap methods first, judges them on held-back calibration images (no labels needed), learns the rounding of
the best if there is time, keeps layers in float only as a last resort, and ends with the ONNX file, its proof, the
trail of what it tried and the reason for its choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from repquant.cli.console import finish, say, show, show_configuration
from repquant.cli.options import (
    CalibrationOptions,
    DataOptions,
    DeviceOptions,
    FolderOptions,
    NetworkOptions,
    TargetOptions,
    option,
    split_names,
)
from repquant.option_ranges import POSITIVE_COUNT, Numbers

if TYPE_CHECKING:
    from repquant.methods.judges import Score
    from repquant.methods.search import Candidate
    from repquant.report.rows import Row


@dataclass(frozen=True, kw_only=True)
class Options(FolderOptions, DeviceOptions, TargetOptions, CalibrationOptions, DataOptions, NetworkOptions):
    """Options of `repquant quantize`."""

    max_drop: float = option("points of top-1 that may be lost, as estimated on held-back images", 0.1, Numbers(0, 100))
    minutes: float = option(
        "time to search in; the attempt under way is finished, and the best so far is proved",
        10.0,
        Numbers(0, 10**6, above=True),
    )
    rounding_images: int = option("calibration images that weights are rounded for", 256, POSITIVE_COUNT)
    held_back_images: int = option(
        "images of the calibration split, other ones, to judge attempts on", 512, POSITIVE_COUNT
    )
    runtimes: str = option(
        "what proves the result: pytorch (the simulation), onnxruntime, openvino, tensorrt, with commas, or all",
        "pytorch,onnxruntime,openvino",
    )


def run(options: Options) -> None:
    """Run the verb."""
    config = show_configuration("quantize", options)
    from repquant.atomic import new_folder
    from repquant.bench.environment import environment
    from repquant.cli.inputs import (
        check_runtimes,
        has_validation,
        hashed_weights,
        held_back_loader,
        kept_names,
        load_graph,
        open_calibration,
        open_loader,
        open_target,
        saturation_notes,
        skipped_images,
    )
    from repquant.cli.outputs import output_folder
    from repquant.cli.proof import prove, tell
    from repquant.cli.quantizing import ImagesOf
    from repquant.graph.devices import full_precision
    from repquant.report.record import AttemptRecord, CalibrationRecord, Record, headline, write_record
    from repquant.report.tables import trail_table
    from repquant.runtimes.available import ENGINES, installed, require
    from repquant.search import search
    from repquant.train.distributed import open_device

    runtimes = split_names(options.runtimes, tuple(ENGINES), "runtimes", installed())
    for name in runtimes:
        require(name)
    target, kept = open_target(options), kept_names(options)
    check_runtimes(target, runtimes)
    output = output_folder(options)
    device = open_device(options.device)

    with full_precision(device), new_folder(output, overwrite=options.overwrite, marker="result.json") as folder:
        graph = load_graph(options, options.image_size, device)
        calibration = open_calibration(options, options, options.data, options.rounding_images)
        held_back = held_back_loader(options, options, options.held_back_images, options.num_classes)
        is_labelled = has_validation(options.data)
        evaluation = open_loader(options, "val", options.num_classes) if is_labelled else held_back
        found = search(
            graph,
            ImagesOf(calibration.ranges),
            target=target,
            max_drop=options.max_drop,
            held_back=ImagesOf(held_back),
            minutes=options.minutes,
            keep_float=kept,
            percentile=options.percentile,
            rounding_images=options.rounding_images,
            on_attempt=_say_attempt,
        )
        outcome = found.outcome
        chosen = outcome.attempts[outcome.best][0]
        say(outcome.reason)

        proof = prove(
            graph,
            {chosen.calibrator: found.module},
            evaluation,
            runtimes,
            folder,
            output,
            target,
        )
        tried = zip(outcome.attempts, found.seconds, strict=True)
        record = Record(
            command="quantize",
            output=options.output,
            config=config,
            inputs=hashed_weights(options),
            environment=environment(),
            calibration=CalibrationRecord(
                images=calibration.images_read, seed=options.seed, sha256=calibration.subset.sha256
            ),
            notes=(
                outcome.reason,
                *found.notes,
                *([target.note] if target.note else []),
                *saturation_notes(target, runtimes),
                *surprises(options.max_drop, proof.rows if is_labelled and outcome.met else ()),
                *([] if is_labelled else ["there is no val/: the table is of the held-back calibration images"]),
            ),
            skipped=skipped_images(
                {"calibration": calibration.ranges, "held back": held_back, "evaluation": evaluation}
            ),
            float_row=proof.float_row,
            results=proof.rows,
            trail=tuple(
                AttemptRecord(
                    name=candidate.name,
                    keep_float=candidate.keep_float,
                    images=held_back.images - len(held_back.skipped),
                    agreement=score.agreement,
                    kl=score.kl,
                    expected_drop=score.drop,
                    seconds=spent,
                    chosen=index == outcome.best,
                )
                for index, ((candidate, score), spent) in enumerate(tried)
            ),
        )
        write_record(record, folder / "result.json")
    show(trail_table(record))
    tell(record)
    best_score = outcome.attempts[outcome.best][1]
    finish(
        headline(record)
        | {"max_drop": options.max_drop, "met": outcome.met, "expected_drop": round(best_score.drop, 6)}
        | {"chosen": chosen.name, "keep_float": list(chosen.keep_float), "reason": outcome.reason}
    )


def _say_attempt(candidate: Candidate, score: Score, seconds: float) -> None:
    say(
        f"{candidate.name}: expected drop {score.drop:.3f} points, agreement {score.agreement:.2f} %, "
        f"KL {score.kl:.2e}, {seconds:.0f} s"
    )


def surprises(max_drop: float, rows: Sequence[Row]) -> tuple[str, ...]:
    """Say so where labelled images show a larger drop than the one that was expected and accepted."""
    worse = [row for row in rows if row.drop is not None and row.drop > max_drop]
    if not worse:
        return ()
    drops = ", ".join(f"{row.drop:.2f} in {row.runtime}" for row in worse)
    return (
        f"on the validation split the drop is above {max_drop:g} points: {drops}. The estimate is optimistic where the "
        "float network is surer of the calibration images than of new ones; calibrate on images that it was not "
        "trained on, or lower --max-drop",
    )
