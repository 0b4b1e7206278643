"""From options to the objects that they name."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from repquant.cli.console import say
from repquant.cli.flags import flag_of
from repquant.cli.options import (
    CalibrationOptions,
    DataOptions,
    ImageOptions,
    MethodOptions,
    ModelOptions,
    NetworkOptions,
    TargetOptions,
    is_onnx,
)
from repquant.errors import InputError
from repquant.methods.method import PtqMethod, ReconstructionOptions

if TYPE_CHECKING:
    import torch
    from torch import fx, nn

    from repquant.choices import Split
    from repquant.data.calibration import CalibrationSubset
    from repquant.data.datasets import ImageSource
    from repquant.data.loading import Example, Loader
    from repquant.data.transforms import EvalTransform
    from repquant.export.file_facts import FileFacts
    from repquant.models.network import RepVGG
    from repquant.report.record import CalibrationRecord
    from repquant.targets.target import Target
    from repquant.train.distributed import Ranks

Model = TypeVar("Model", bound=ModelOptions)

_EXAMPLES = 24  # of the calibration images, for the record


def weights_path(options: ModelOptions) -> Path:
    """Return the checkpoint's path; `builtin` stands for the one that ships."""
    from repquant.models.zoo import builtin_weights

    return builtin_weights() if options.weights == "builtin" else Path(options.weights)


def load_network(options: ModelOptions) -> RepVGG:
    """Return the network in the form that its checkpoint has."""
    from repquant.models.checkpoints import load_model

    return load_model(weights_path(options), options.arch, options.num_classes)


def load_deploy_network(options: ModelOptions) -> RepVGG:
    """Return the network in deploy form, whatever form its checkpoint has."""
    from repquant.models.reparam import reparameterize

    return reparameterize(load_network(options))


def load_graph(options: NetworkOptions, image_size: int, device: torch.device | None = None) -> fx.GraphModule:
    """Return the float network in deploy form as a captured graph, for images of a size in pixels, on a device or the
    CPU.

    Raises:
        InputError: neither an architecture with weights nor a network of the user's own, or both; an ONNX file that
            can't be read, or that takes one size of batch alone.
    """
    import torch

    from repquant.graph.capture import capture
    from repquant.models.user_network import make_network
    from repquant.reparameterize import reparameterize

    images = torch.zeros(2, 3, image_size, image_size)
    if options.model:
        if options.arch:
            raise InputError(f"--model {options.model} and --arch {options.arch} were given; give one of them")
        if is_onnx(options.model):
            return reparameterize(_read_file(options, image_size).to(device), images)
        return reparameterize(make_network(options.model, options.weights).to(device), images)
    if not (options.arch and options.weights):
        raise InputError("which network? Give --arch and --weights, or --model for one of your own")
    return capture(load_deploy_network(options).to(device), images)


def _read_file(options: NetworkOptions, image_size: int) -> nn.Module:
    """Return the network of an ONNX file, compared with ONNX Runtime on images of the size."""
    import torch

    from repquant.read_onnx import read_onnx

    if options.weights:
        raise InputError(f"--weights {options.weights} was given, and {options.model} holds its own; leave it out")
    noise = torch.randn(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    return read_onnx(options.model, example=noise)


def hashed_weights(options: ModelOptions) -> dict[str, str]:
    """Return the SHA-256 of the checkpoint or ONNX file by its role, for the record; nothing where there is none."""
    if isinstance(options, NetworkOptions) and is_onnx(options.model):
        return {"model": file_sha256(Path(options.model))}
    return {"weights": file_sha256(weights_path(options))} if options.weights else {}


def transform(options: ImageOptions) -> EvalTransform:
    """Return the evaluation transform."""
    from repquant.data.transforms import EvalTransform

    return EvalTransform(
        image_size=options.image_size, crop_ratio=options.crop_ratio, mean=options.mean, std=options.std
    )


def file_facts(loader: Loader, calibrator: str | None = None) -> FileFacts:
    """Return what a file says of itself whose network takes the images of a loader."""
    from repquant.export.file_facts import FileFacts

    made = loader.transform
    return FileFacts(
        image_size=made.image_size if isinstance(made.image_size, int) else None,
        crop_ratio=made.crop_ratio,
        mean=made.mean,
        std=made.std,
        classes=loader.classes,
        calibrator=calibrator,
    )


def identified(options: Model) -> Model:
    """Return the options with the architecture and the number of classes read off the checkpoint, where not given.

    Raises:
        InputError: it is of no architecture of the zoo.
    """
    is_own = isinstance(options, NetworkOptions) and options.model
    if is_own or not options.weights or (options.arch and options.num_classes):
        return options
    from repquant.models.checkpoints import identify

    arch, num_classes = identify(weights_path(options))
    found = replace(options, arch=options.arch or arch, num_classes=options.num_classes or num_classes)
    say(f"{options.weights}: {arch} with {num_classes} classes")
    return found


def open_loader(options: DataOptions, split: Split, num_classes: int, ranks: Ranks | None = None) -> Loader:
    """Return the batches of a labelled split; of several ranks, this one's part of them.

    Raises:
        InputError: the folder is missing, empty, or has another number of classes than the model, where that is not 0
            (not known); or fewer images than there are ranks.
    """
    from repquant.data.datasets import open_split
    from repquant.data.loading import Loader

    source = open_split(options.data, split)
    _check_classes(source, options.data, split, num_classes)
    part = ranks.part(range(len(source))) if ranks else None
    return Loader(source, transform(options), options.batch_size, options.workers, options.skip_unreadable, part)


def has_validation(data: str) -> bool:
    """Return whether data has a validation split."""
    return data == "builtin" or (Path(data) / "val").is_dir()


def _check_classes(source: ImageSource, data: str, split: Split, num_classes: int) -> None:
    if num_classes and source.classes is not None and len(source.classes) != num_classes:
        raise InputError(
            f"{data} has {len(source.classes)} classes in {split}, the model has {num_classes}; "
            f"labels would not match. Pass --num-classes {len(source.classes)} with a checkpoint that has as many"
        )


@dataclass(frozen=True)
class Calibration:
    """The batches that ranges are read from, those of them that weights are rounded for, and a record of the choice."""

    ranges: Loader
    rounding: Loader | None
    subset: CalibrationSubset

    @property
    def images_read(self) -> int:
        """How many images the ranges came from, once they were found: unreadable ones do not count."""
        return self.ranges.images - len(self.ranges.skipped)

    def examples(self) -> list[Example]:
        """Return the first of them."""
        return self.ranges.examples(range(min(_EXAMPLES, self.images_read)))

    def record(self, seconds: float | None = None) -> CalibrationRecord:
        """Return what a record says of them, and of the seconds that the pass over them took."""
        from repquant.report.record import CalibrationRecord

        return CalibrationRecord(
            images=self.images_read,
            seed=self.subset.seed,
            sha256=self.subset.sha256,
            seconds=seconds,
            examples=tuple(example.name for example in self.examples()),
        )


def open_calibration(
    options: CalibrationOptions,
    images: ImageOptions,
    default_data: str,
    rounding_images: int,
    held_back_images: int = 0,
) -> Calibration:
    """Open the calibration images; those for rounding are the first of those for ranges, and as well stratified.

    None of them is among the `held_back_images` that a training judges on. Where there are fewer than the default
    numbers, all are taken, and it is said so.

    Raises:
        InputError: more images for rounding than for ranges, or data that can't be opened.
    """
    from repquant.data.calibration import select
    from repquant.data.datasets import open_split
    from repquant.data.loading import Loader
    from repquant.train.held_back import hold_back

    if rounding_images > options.calibration_images and rounding_images != MethodOptions.rounding_images:
        raise InputError(
            f"--rounding-images {rounding_images} was given, and weights are rounded for calibration images, of which "
            f"there are {options.calibration_images}; lower it or raise --calibration-images"
        )
    source = open_split(options.calibration_data or default_data, "train")
    if held_back_images and not options.calibration_data:
        source, _ = hold_back(source, held_back_images)
    images_asked = options.calibration_images
    if images_asked == CalibrationOptions.calibration_images and len(source) < images_asked:
        say(f"there are {len(source)} images to calibrate on: all are taken, in place of {images_asked}")
        images_asked = len(source)
    subset = select(source, images_asked, options.seed, skip_unreadable=images.skip_unreadable)

    def loader(count: int) -> Loader:
        chosen = subset.indices[:count]
        return Loader(source, transform(images), images.batch_size, images.workers, images.skip_unreadable, chosen)

    return Calibration(loader(images_asked), loader(rounding_images) if rounding_images else None, subset)


def training_loader(images: DataOptions, count: int, seed: int, ranks: Ranks) -> Loader:
    """Open this rank's part of `count` images of the training split, as they are for evaluation; 0 stands for all.

    Raises:
        InputError: there are fewer, or `count` is negative; or fewer than there are ranks.
    """
    from repquant.data.calibration import draw
    from repquant.data.datasets import open_split
    from repquant.data.loading import Loader

    source = open_split(images.data, "train")
    if not 0 <= count <= len(source):
        raise InputError(
            f"--images {count} was given; allowed are 1 to {len(source)}, the images there are, and 0: all"
        )
    part = ranks.part(draw(source, count, seed) if count else range(len(source)))
    return Loader(source, transform(images), images.batch_size, images.workers, images.skip_unreadable, part)


def held_back_loader(options: CalibrationOptions, images: DataOptions, count: int, num_classes: int) -> Loader:
    """Open `count` images of the calibration split that calibration does not see.

    Their labels are used only where there is no validation split, whose place they then take.

    Raises:
        InputError: the split has not enough images, or labels that are used and do not fit the model, or `count` is not
            positive.
    """
    from repquant.data.calibration import draw
    from repquant.data.datasets import open_split
    from repquant.data.loading import Loader

    source = open_split(options.calibration_data or images.data, "train")
    if not has_validation(images.data):
        _check_classes(source, options.calibration_data or images.data, "train", num_classes)
    spare = len(source) - options.calibration_images
    if spare < 1:
        raise InputError(
            f"--calibration-images {options.calibration_images} leaves none of {len(source)} images to judge on; "
            "lower it"
        )
    if not 1 <= count <= spare:
        raise InputError(
            f"--held-back-images {count} was given; allowed are 1 to {spare}, the images that are left besides the "
            f"{options.calibration_images} for calibration"
        )
    chosen = draw(source, options.calibration_images + count, options.seed)[options.calibration_images :]
    return Loader(source, transform(images), images.batch_size, images.workers, images.skip_unreadable, chosen)


def open_method(options: MethodOptions, target: Target) -> PtqMethod:
    """Return what is done beside finding ranges.

    Raises:
        InputError: a name that is not known, gains with scales that they don't fold into, or options of learned
            rounding with another one.
    """
    if options.reconstruction_gains and target.weight.scale_type != "float32":
        raise InputError("--reconstruction-gains fold into float32 scales; leave --tensorrt-scales at float32")
    if options.reconstruction_gains and target.weight.channel_axis is None:
        raise InputError("--reconstruction-gains fold into a scale for each channel; leave --per-tensor-weights out")
    of_learned = [setting for setting in fields(options) if setting.name.startswith("reconstruction_")]
    given = [setting.name for setting in of_learned if getattr(options, setting.name) != setting.default]
    if given and options.rounding != "learned":
        names = ", ".join(map(flag_of, given))
        raise InputError(f"{names}: for learned rounding alone, and it is {options.rounding}; pass --rounding learned")
    return PtqMethod(
        equalization=options.equalization,
        identity=options.identity,
        weight_ranges=options.weight_ranges,
        rounding=options.rounding,
        reconstruction=ReconstructionOptions(
            steps=options.reconstruction_steps,
            granularity=options.reconstruction_unit,
            loss=options.reconstruction_loss,
            drop=options.reconstruction_drop,
            affine=options.reconstruction_gains,
        ),
    )


def open_target(options: TargetOptions) -> Target:
    """Return the schemes of the target on the CPU that will serve it.

    Raises:
        InputError: a name or a number that is not allowed, or options of one target with another.
    """
    from repquant.runtimes.cpu import int8_support
    from repquant.targets.target import resolve_target

    for setting in ("tensorrt_weights", "tensorrt_scales"):
        chosen = getattr(options, setting)
        if chosen != getattr(TargetOptions, setting) and options.target != "tensorrt":
            raise InputError(
                f"{flag_of(setting)} {chosen} is for --target tensorrt, and it is {options.target}; leave it out"
            )
    fast = int8_support().safe if options.vnni == "auto" else options.vnni == "yes"
    return resolve_target(
        options.target,
        per_tensor_weights=options.per_tensor_weights,
        fast_int8_dot=fast,
        weight_bits=options.weight_bits,
        activation_bits=options.activation_bits,
        stored_weights=options.tensorrt_weights,
        scale_type=options.tensorrt_scales,
    )


def saturation_notes(target: Target, runtimes: Sequence[str]) -> tuple[str, ...]:
    """Return what a reader of the runtimes' rows has to know about this CPU; nothing where it computes exactly."""
    from repquant.runtimes.cpu import int8_support

    if target.weight.bits < 8 or int8_support().safe:
        return ()
    notes = {
        "onnxruntime": "this CPU has no VNNI: ONNX Runtime multiplies 8-bit weights in its precise mode here, which is "
        "exact and slower (session.x64quantprecision)",
        "openvino": "this CPU has no VNNI: openvino may saturate with 8-bit weights here; its rows are not what the "
        "model gives on hardware that accumulates in 32 bits",
    }
    return tuple(note for name, note in notes.items() if name in runtimes)


def kept_names(options: TargetOptions) -> tuple[str, ...]:
    """Return the names in `--keep-float`."""
    return tuple(name.strip() for name in options.keep_float.split(",") if name.strip())


def skipped_images(loaders: Mapping[str, Loader]) -> dict[str, str]:
    """Return the unreadable images that were left out, "role: name" -> reason."""
    return {f"{role}: {name}": reason for role, loader in loaders.items() for name, reason in loader.skipped.items()}


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
