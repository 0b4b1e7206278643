"""Train on with rounding in the loop, then export and measure as `repquant ptq` does.

The start is the best that quantization after training finds (--equalization noise --rounding feedback); the float model
is the teacher, so labels are not needed for the loss. --method says what trains:

equivalent-kernel  the branches, through the kernel that they are equivalent to, which is what is rounded
plain              the kernels of the deploy model
inserted-bn        the original pipeline: kernels folded with batch normalizations that were inserted for training

The integers that are exported are those that training saw last. The output folder is that of a training: checkpoints,
and at the end the ONNX files, model.safetensors (deploy form, the rounded weights as float) and result.json. --resume
goes on with a run.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from repquant.choices import Calibrator, Equalization, Vnni, WeightRanges
from repquant.cli.console import finish, say, show_configuration
from repquant.cli.options import CalibrationOptions, ModelOptions, ProofOptions, TargetOptions, as_in
from repquant.cli.training import RunOptions
from repquant.errors import InputError
from repquant.methods.method import PtqMethod
from repquant.option_ranges import COUNT, option
from repquant.repvgg.qat_recipe import RepVGGQatRecipe
from repquant.train.stopping import stoppable

if TYPE_CHECKING:
    import torch

    from repquant.cli.inputs import Calibration
    from repquant.models.network import RepVGG
    from repquant.repvgg.qat_start import QatStart, StartOptions
    from repquant.targets.target import Target
    from repquant.train.distributed import Ranks


EXAMPLE = "repquant qat --arch RepVGG-A0 --weights A0.pth --data FOLDER --target tensorrt --output runs/a0-qat"


@dataclass(frozen=True, kw_only=True)
class Settings(RepVGGQatRecipe, CalibrationOptions, TargetOptions, ModelOptions):
    """Start of the training: with it, everything that the trained integers depend on. A run can't go on with others."""

    equalization: Literal["none", Equalization] = as_in(PtqMethod, "equalization")
    identity: Literal["fused", "residual"] = as_in(PtqMethod, "identity")
    weight_ranges: WeightRanges = as_in(PtqMethod, "weight_ranges")
    rounding: Literal["feedback", "nearest"] = as_in(PtqMethod, "rounding")
    rounding_images: int = option("calibration images that rounding looks at; 0 rounds to the nearest", 256, COUNT)
    calibrator: Literal["default", Calibrator] = option(
        "of the ranges that training starts from; default: mse, and loss-aware for activations of fewer than 8 bits",
        "default",
    )
    inserted_bn: str = option("file of `repquant insert-bn`, for --method inserted-bn; default: measured here", "")


@dataclass(frozen=True, kw_only=True)
class Options(ProofOptions, Settings, RunOptions):
    """Options of `repquant qat`."""


def run(options: Options) -> None:
    """Run the verb."""
    with stoppable():
        from repquant.graph.devices import full_precision
        from repquant.train.distributed import started_by_torchrun

        # The main process calibrates for all.
        with (
            started_by_torchrun(options.device, patience_hours=12) as (ranks, device),
            full_precision(device),
            ExitStack() as until_the_end,
        ):
            _qat(options, ranks, device, until_the_end)


def _qat(options: Options, ranks: Ranks, device: torch.device, until_the_end: ExitStack) -> None:
    from time import perf_counter

    import torch
    from torch import fx

    from repquant.cli.inputs import (
        kept_names,
        load_network,
        open_calibration,
        open_loader,
        open_target,
        skipped_images,
    )
    from repquant.cli.outputs import output_folder
    from repquant.cli.proof import prove, proving_runtimes
    from repquant.cli.recording import record_of, tell
    from repquant.cli.training import begin, open_images, train
    from repquant.graph.interface import with_example
    from repquant.models.checkpoints import save_model
    from repquant.models.reparam import reparameterize
    from repquant.qat.network import make_trainable, trained_integers
    from repquant.report.record import headline, write_record
    from repquant.repvgg.insert_bn import load_inserted_bn
    from repquant.repvgg.qat_start import bare_start, captured, rounded_deploy
    from repquant.repvgg.qat_task import RepVGGQatTask
    from repquant.train.checkpoint import newest_checkpoint
    from repquant.train.loop import Trainer

    config = show_configuration("qat", options) if ranks.is_main else {}
    output = output_folder(options)
    # What the machine decides is decided once: a run that goes on elsewhere keeps its grids.
    options = replace(options, vnni=ranks.from_main(lambda: _resolved_vnni(options)))
    settings = Settings(**{setting.name: getattr(options, setting.name) for setting in fields(Settings)})
    target = open_target(options)
    runtimes = proving_runtimes(options.runtimes, target)
    kept = kept_names(options)
    model = load_network(options)
    _check(model, settings, kept)
    inserted = load_inserted_bn(reparameterize(model), Path(settings.inserted_bn)) if settings.inserted_bn else None
    teacher = _teacher(options, model)
    training, validation = open_images(options, settings, ranks)
    settings = settings.with_learning_rate(settings.epochs * training.steps)
    evaluation = open_loader(options, "val", options.num_classes)
    calibration = open_calibration(options, options, options.data, options.rounding_images, settings.held_back_images)
    begin(options, settings, ranks, until_the_end)
    newest = ranks.from_main(lambda: newest_checkpoint(output)) if options.resume else None

    started = perf_counter()
    if newest is None or newest.checkpoint is None:
        start = ranks.from_main(lambda: _start(model, inserted, settings, target, calibration, kept))
    else:
        start = bare_start(model, _start_options(settings), target, kept)
    start_seconds = perf_counter() - started
    network = make_trainable(
        start.graph,
        start.plan,
        sources=start.sources,
        weight_scales=settings.resolved_weight_scales,
        learned_activations=settings.activation_scales == "learned",
    )
    trainer = Trainer(
        RepVGGQatTask(network, settings, captured(teacher)), settings, training, validation, device, ranks
    )
    train(trainer, settings, options, ranks, newest)
    if not ranks.is_main:
        return

    trained = trainer.result.cpu()
    assert isinstance(trained, fx.GraphModule)
    finished = trained_integers(trained, start.graph, start.plan)
    quantized = finished.simulated()
    save_model(rounded_deploy(start, finished.graph, quantized), output / "model.safetensors")
    images = torch.zeros(2, 3, options.image_size, options.image_size)
    proof = prove(
        with_example(captured(reparameterize(model)), images),
        {options.method: with_example(quantized, images)},
        evaluation,
        calibration,
        runtimes,
        output,
        output,
        target,
    )
    train_seconds = sum(report.train_seconds for report in trainer.history)
    cost = (
        f"start {start_seconds:.1f} s; training {len(trainer.history)} epochs at a peak learning rate of "
        f"{settings.learning_rate:.3g}, {train_seconds:.1f} s"
    )
    record = record_of(
        "qat",
        options,
        config,
        proof,
        target=target,
        output=options.output,
        calibration=calibration,
        evaluation=evaluation,
        skipped=training.skipped | skipped_images({"calibration": calibration.ranges, "evaluation": evaluation}),
        notes=[cost],
        work_seconds=start_seconds + train_seconds,
    )
    write_record(record, output / "result.json")
    tell(record)
    finish(headline(record))


def _resolved_vnni(options: Options) -> Vnni:
    """Return yes or no in place of auto, where the target's scheme depends on it."""
    from repquant.runtimes.cpu import int8_support

    if options.vnni != "auto" or options.target == "tensorrt":
        return options.vnni
    return "yes" if int8_support().safe else "no"


def _check(model: RepVGG, settings: Settings, kept: tuple[str, ...]) -> None:
    """Refuse what would only be noticed after minutes of calibration."""
    from repquant.graph.layout import resolve_keep_float
    from repquant.models.reparam import reparameterize
    from repquant.repvgg.qat_start import captured, require_branches

    require_branches(model, settings.method)
    _start_options(settings)
    resolve_keep_float(captured(reparameterize(model)), kept)
    if settings.inserted_bn and settings.method != "inserted-bn":
        raise InputError(f"--inserted-bn is for --method inserted-bn, and the method is {settings.method}")
    if settings.inserted_bn and (settings.equalization != "none" or settings.rounding != "nearest"):
        raise InputError(
            "the normalizations in --inserted-bn are those of the checkpoint as it is; pass --equalization none and "
            "--rounding nearest with them"
        )


def _start(
    model: RepVGG,
    inserted: RepVGG | None,
    settings: Settings,
    target: Target,
    calibration: Calibration,
    kept: tuple[str, ...],
) -> QatStart:
    """Quantize after training; that is where quantization-aware training starts."""
    from repquant.repvgg.insert_bn import FEW_IMAGES
    from repquant.repvgg.qat_start import start_qat

    if settings.method == "inserted-bn" and inserted is None and calibration.ranges.images < FEW_IMAGES:
        say(
            f"warning: the inserted normalizations have their statistics from {calibration.ranges.images} images; "
            "`repquant insert-bn` takes all of train/"
        )
    say(f"calibrating first, on {calibration.ranges.images} images: training starts from there")
    return start_qat(
        model,
        _start_options(settings),
        target,
        lambda: (batch.images for batch in calibration.ranges),
        lambda: (batch.images for batch in calibration.rounding or ()),
        kept,
        inserted,
    )


def _start_options(settings: Settings) -> StartOptions:
    from repquant.repvgg.qat_start import StartOptions

    return StartOptions(
        method=settings.method,
        ptq=PtqMethod(
            equalization=settings.equalization,
            identity=settings.identity,
            weight_ranges=settings.weight_ranges,
            rounding=settings.rounding,
        ),
        calibrator=None if settings.calibrator == "default" else settings.calibrator,
        percentile=settings.percentile,
    )


def _teacher(options: Options, model: RepVGG) -> RepVGG:
    """Return the float model to distill from, in deploy form."""
    from repquant.models.checkpoints import load_model
    from repquant.models.reparam import reparameterize

    if not options.teacher:
        return reparameterize(model)
    try:
        teacher = load_model(options.teacher, options.teacher_arch or options.arch, options.num_classes)
    except InputError as error:
        raise InputError(
            f"--teacher can't be used, which needs the classes of the network, {options.num_classes}: {error}"
        ) from error
    return reparameterize(teacher)
