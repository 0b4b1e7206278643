"""Quantize to INT8 and lose at most --max-drop points of top-1: the one command for a result.

It tries the cheap methods first, judges them on held-back calibration images (no labels needed), keeps layers in float
only as a last resort, and ends with the ONNX file, its proof, the trail of what it tried and the reason for its choice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

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
from repquant.errors import InputError

if TYPE_CHECKING:
    from repquant.report.rows import Row


@dataclass(frozen=True, kw_only=True)
class Options(FolderOptions, TargetOptions, CalibrationOptions, DataOptions, ModelOptions):
    """Options of `repquant quantize`."""

    max_drop: float = option("points of top-1 that may be lost, as estimated on held-back images", 0.1)
    minutes: float = option("time to search in; the attempt under way is finished, and the best so far is proved", 10.0)
    rounding_images: int = option("calibration images that weights are rounded for", 256)
    held_back_images: int = option("images of the calibration split, other ones, to judge attempts on", 512)
    runtimes: str = option(
        "what proves the result: pytorch (the simulation), onnxruntime, openvino, with commas, or all",
        "pytorch,onnxruntime,openvino",
    )


def run(options: Options) -> None:
    """Run the verb."""
    config = show_configuration("quantize", options)
    import torch

    from repquant.atomic import new_folder
    from repquant.bench.environment import environment
    from repquant.cli.inputs import (
        check_runtimes,
        file_sha256,
        held_back_loader,
        kept_names,
        load_deploy_network,
        open_calibration,
        open_loader,
        open_target,
        saturation_notes,
        skipped_images,
        weights_path,
    )
    from repquant.cli.proof import prove, tell
    from repquant.cli.quantizing import Calibrated, calibrate, quantize
    from repquant.models.network import RepVGG
    from repquant.models.shortcut import count_identities
    from repquant.quant.calibrate import activation_ranges
    from repquant.quant.ptq import PtqMethod
    from repquant.quant.search import Candidate, Score, judge, methods, search, with_float_layers
    from repquant.quant.sensitivity import measure_sensitivity
    from repquant.report.record import AttemptRecord, CalibrationRecord, Record, headline, write_record
    from repquant.report.tables import trail_table
    from repquant.runtimes.available import ENGINES, require

    if options.max_drop < 0:
        raise InputError(f"--max-drop {options.max_drop} is negative; 0 accepts only the same top-1 everywhere")
    if options.minutes <= 0:
        raise InputError(f"--minutes {options.minutes} is not positive; give the time that the search may take")
    runtimes = split_names(options.runtimes, tuple(ENGINES), "runtimes")
    for name in runtimes:
        require(name)
    if options.rounding_images < 1:
        raise InputError(
            f"--rounding-images {options.rounding_images} was given; the methods that are tried need images"
        )
    target, kept = open_target(options), kept_names(options)
    check_runtimes(target, runtimes)
    output = Path(options.output)

    with new_folder(output, overwrite=options.overwrite, marker="result.json") as folder:
        model = load_deploy_network(options)
        calibration = open_calibration(options, options, options.data, options.rounding_images)
        held_back = held_back_loader(options, options, options.held_back_images, options.num_classes)
        has_validation = options.data == "builtin" or (Path(options.data) / "val").is_dir()
        evaluation = open_loader(options, "val", options.num_classes) if has_validation else held_back
        started = perf_counter()
        calibrated: dict[tuple[str, str], Calibrated] = {}
        seconds: list[float] = []
        quantized: dict[Candidate, RepVGG] = {}

        @torch.inference_mode()
        def logits(network: RepVGG) -> torch.Tensor:
            return torch.cat([network(batch.images) for batch in held_back])

        reference = logits(model)

        def calibrated_for(method: PtqMethod) -> Calibrated:
            key = (method.equalization, method.identity)
            if key not in calibrated:
                calibrated[key] = calibrate(model, method, target, calibration, kept)
            return calibrated[key]

        def quantize_candidate(candidate: Candidate) -> RepVGG:
            prepared = calibrated_for(candidate.method)
            ranges = activation_ranges(candidate.calibrator, prepared.histograms, target, percentile=options.percentile)
            floats = (*kept, *candidate.keep_float)
            return quantize(prepared.model, ranges, target, candidate.method, calibration, floats, candidate.name)

        def attempt(candidate: Candidate) -> Score:
            began = perf_counter()
            quantized.clear()  # one model in memory; the best one is made again if it is not the last
            quantized[candidate] = quantize_candidate(candidate)
            score = judge(reference, logits(quantized[candidate]))
            seconds.append(perf_counter() - began)
            say(
                f"{candidate.name}: expected drop {score.expected_drop:.3f} points, agreement {score.agreement:.2f} %, "
                f"KL {score.kl:.2e}, {seconds[-1]:.0f} s"
            )
            return score

        def float_layers(best: Candidate) -> Iterator[Candidate]:
            if best not in quantized:
                quantized.clear()
                quantized[best] = quantize_candidate(best)
            with progress("find sensitive layers", held_back.images) as advance:
                images = (batch.images for batch in held_back)
                found = measure_sensitivity(calibrated_for(best.method).model, quantized[best], images, advance)
            layers = sorted((one for one in found.layers if one.has_weights), key=lambda one: -one.only.kl)
            yield from with_float_layers(best, [layer.name for layer in layers])

        outcome = search(
            methods(count_identities(model) > 0),
            float_layers,
            attempt,
            options.max_drop,
            lambda: perf_counter() - started > 60 * options.minutes,
        )
        chosen = outcome.attempts[outcome.best][0]
        if chosen not in quantized:
            quantized[chosen] = quantize_candidate(chosen)
        say(outcome.reason)

        proof = prove(
            model,
            {chosen.calibrator: quantized[chosen]},
            evaluation,
            runtimes,
            options.image_size,
            folder,
            output,
            simulated_only=target.activation.bits < 8,
        )
        record = Record(
            command="quantize",
            output=options.output,
            config=config,
            inputs={"weights": file_sha256(weights_path(options))},
            environment=environment(),
            calibration=CalibrationRecord(
                images=options.calibration_images, seed=options.seed, sha256=calibration.subset.sha256
            ),
            notes=(
                outcome.reason,
                *([target.note] if target.note else []),
                *saturation_notes(target, runtimes),
                *surprises(options.max_drop, proof.rows if has_validation and outcome.met else ()),
                *([] if has_validation else ["there is no val/: the table is of the held-back calibration images"]),
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
                    images=len(reference),
                    agreement=score.agreement,
                    kl=score.kl,
                    expected_drop=score.expected_drop,
                    seconds=spent,
                    chosen=index == outcome.best,
                )
                for index, ((candidate, score), spent) in enumerate(zip(outcome.attempts, seconds, strict=True))
            ),
        )
        write_record(record, folder / "result.json")
    show(trail_table(record))
    tell(record)
    best_score = outcome.attempts[outcome.best][1]
    finish(
        headline(record)
        | {"max_drop": options.max_drop, "met": outcome.met, "expected_drop": round(best_score.expected_drop, 6)}
        | {"chosen": chosen.name, "keep_float": list(chosen.keep_float), "reason": outcome.reason}
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
