"""Quantize to INT8 and lose at most --max-drop points of top-1: the one command for a result.

It tries the cheap methods first, judges them on held-back calibration images (no labels needed), learns the rounding of
the best if there is time, keeps layers in float only as a last resort, and ends with the ONNX file, its proof, the
trail of what it tried and the reason for its choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from repquant.cli.console import finish, say, show, show_configuration, steps
from repquant.cli.options import (
    CalibrationOptions,
    DataOptions,
    DeviceOptions,
    FolderOptions,
    MixedPrecisionOptions,
    NetworkOptions,
    ProofOptions,
    TargetOptions,
)
from repquant.option_ranges import POSITIVE_COUNT, Numbers, option

if TYPE_CHECKING:
    from repquant.methods.judges import Score
    from repquant.methods.search import Candidate
    from repquant.report.rows import Row


EXAMPLE = (
    "repquant quantize --arch RepVGG-A0 --weights A0.pth "
    "--data FOLDER --target onnxruntime --max-drop 0.1 --output runs/a0"
)


@dataclass(frozen=True, kw_only=True)
class Options(
    FolderOptions,
    DeviceOptions,
    ProofOptions,
    MixedPrecisionOptions,
    TargetOptions,
    CalibrationOptions,
    DataOptions,
    NetworkOptions,
):
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
    benchmark: bool = option("measure latency too, beside the float file in the same runtime", False)


def run(options: Options) -> None:
    """Run the verb."""
    from repquant.cli.inputs import identified

    options = identified(options)
    config = show_configuration("quantize", options)
    from repquant.atomic import new_folder
    from repquant.cli.inputs import (
        has_validation,
        held_back_loader,
        kept_names,
        load_graph,
        open_calibration,
        open_loader,
        open_target,
        skipped_images,
    )
    from repquant.cli.outputs import output_folder
    from repquant.cli.proof import prove, proving_runtimes
    from repquant.cli.quantizing import ImagesOf, open_average_bits
    from repquant.cli.recording import bits_notes, choice, record_of, tell
    from repquant.graph.devices import full_precision
    from repquant.report.record import AttemptRecord, headline, write_record
    from repquant.report.tables import trail_table
    from repquant.search import search
    from repquant.train.distributed import open_device

    target, kept = open_target(options), kept_names(options)
    average_bits = open_average_bits(options, target)
    runtimes = proving_runtimes(options.runtimes, target)
    output = output_folder(options)
    device = open_device(options.device)

    with full_precision(device), new_folder(output, overwrite=options.overwrite, marker="result.json") as folder:
        graph = load_graph(options, options.image_size, device)
        options = _shared_out(options)
        calibration = open_calibration(options, options, options.data, options.rounding_images)
        held_back = held_back_loader(options, options, options.held_back_images, options.num_classes)
        is_labelled = has_validation(options.data)
        evaluation = open_loader(options, "val", options.num_classes) if is_labelled else held_back
        images = calibration.ranges.images
        with steps({"scale channels": images, "calibrate": images}) as on_progress:
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
                average_bits=average_bits,
                on_progress=on_progress,
                on_attempt=_say_attempt,
            )
        outcome = found.outcome
        chosen = outcome.attempts[outcome.best][0]
        say(outcome.reason)

        proof = prove(
            graph,
            {chosen.calibrator: found.module},
            evaluation,
            calibration,
            runtimes,
            folder,
            output,
            target,
            benchmark=options.benchmark,
        )
        tried = zip(outcome.attempts, found.seconds, strict=True)
        record = record_of(
            "quantize",
            options,
            config,
            proof,
            target=target,
            output=options.output,
            calibration=calibration,
            evaluation=evaluation,
            weight_bits=found.plan.weight_bits,
            skipped=skipped_images(
                {"calibration": calibration.ranges, "held back": held_back, "evaluation": evaluation}
            ),
            notes=(
                outcome.reason,
                *bits_notes(found.float_graph, found.plan),
                *found.notes,
                *surprises(options.max_drop, proof.rows if is_labelled and outcome.met else ()),
                *([] if is_labelled else ["there is no val/: the table is of the held-back calibration images"]),
            ),
            trail=[
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
            ],
        )
        write_record(record, folder / "result.json")
    show(trail_table(record))
    tell(record)
    say(choice(record))
    best_score = outcome.attempts[outcome.best][1]
    finish(
        headline(record)
        | {"max_drop": options.max_drop, "met": outcome.met, "expected_drop": round(best_score.drop, 6)}
        | {"chosen": chosen.name, "keep_float": list(chosen.keep_float), "reason": outcome.reason}
    )


def _shared_out(options: Options) -> Options:
    """Return the options, half of the images to calibrate and half to judge where the defaults ask for more."""
    from repquant.data.datasets import open_split

    asked = options.calibration_images, options.held_back_images
    if asked != (Options.calibration_images, Options.held_back_images):
        return options
    available = len(open_split(options.calibration_data or options.data, "train"))
    if available >= sum(asked) or available < 2:
        return options
    held_back = available // 2
    say(
        f"there are {available} images to calibrate on: {available - held_back} do, and {held_back} others judge, in "
        f"place of {asked[0]} and {asked[1]}"
    )
    return replace(options, calibration_images=available - held_back, held_back_images=held_back)


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
