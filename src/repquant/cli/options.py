"""What several verbs ask for, as dataclasses: one field an option, its help in the field.

Nothing heavy is imported here: the parser of every verb is built before one is chosen.
"""

import os
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, Literal

from repquant.choices import (
    CALIBRATORS,
    LOSS_AWARE,
    RUNTIMES,
    Device,
    Equalization,
    Granularity,
    Identity,
    Rounding,
    RoundingLoss,
    ScaleType,
    StoredWeights,
    TargetName,
    Vnni,
    WeightRanges,
)
from repquant.methods.method import PtqMethod, ReconstructionOptions
from repquant.option_ranges import (
    BATCH,
    BITS,
    CLASSES,
    COUNT,
    CROP_RATIO,
    DEVIATIONS,
    IMAGE_SIDE,
    MEANS,
    POSITIVE_COUNT,
    SEED,
    Names,
    Numbers,
    option,
)

WORKERS = Numbers(0, max(32, 4 * (os.cpu_count() or 1)))
"""Decoding processes beyond these only take memory."""

AUTO = "auto"
CALIBRATOR_NAMES = Names((*CALIBRATORS, LOSS_AWARE))
RUNTIME_NAMES = Names(RUNTIMES)


def argument(help: str) -> Any:
    """Return a required field that is given by its place instead of by a flag."""
    return field(metadata={"help": help, "positional": True})


def as_in(settings: type, name: str, default: Any = MISSING) -> Any:
    """Return the field of an option that a dataclass of the library defines: its help, range and default.

    Args:
        settings: the dataclass.
        name: of its field.
        default: another default.
    """
    defined: Field[Any] = next(each for each in fields(settings) if each.name == name)
    metadata = {**defined.metadata, "argument": name}
    return field(default=defined.default if default is MISSING else default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Network: an architecture of the zoo with its checkpoint."""

    arch: str = option("architecture, for example RepVGG-A0; default: read off the checkpoint", "")
    num_classes: int = option("number of classes; 0: read off the checkpoint", 0, Numbers(0, CLASSES.most))
    weights: str = option("checkpoint: .pth or .safetensors, training or deploy form; 'builtin' for the one that ships")


@dataclass(frozen=True, kw_only=True)
class NetworkOptions(ModelOptions):
    """Network: an architecture of the zoo with its checkpoint, or one of the user's own."""

    model: str = option(
        "network of your own, package.module:function, file.py:function or a float .onnx file; in place of --arch, and "
        "--weights may be left out",
        "",
    )
    weights: str = option(
        "checkpoint: .pth or .safetensors, training or deploy form; 'builtin' for the one that ships", ""
    )


def is_onnx(model: str) -> bool:
    """Whether a network of the user's own is a file, which is read, and no code, which is run."""
    return model.endswith(".onnx")


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """Images: how they become batches."""

    image_size: int = option("side of the square images that the network sees, in pixels", 224, IMAGE_SIDE)
    crop_ratio: float = option(
        "image size / resized shorter side: 0.875 for ImageNet, 1.0 for no margin", 0.875, CROP_RATIO
    )
    mean: tuple[float, float, float] = option("channel means for normalization", (0.485, 0.456, 0.406), MEANS)
    std: tuple[float, float, float] = option(
        "channel standard deviations for normalization", (0.229, 0.224, 0.225), DEVIATIONS
    )
    batch_size: int = option("images a batch", 32, BATCH)
    workers: int = option("processes that decode images; 0 decodes in the main process", 0, WORKERS)
    skip_unreadable: bool = option("go on without images that can't be read, and count them", False)


@dataclass(frozen=True, kw_only=True)
class DataOptions(ImageOptions):
    """Images: where they are."""

    data: str = option("folder with class folders in train/ and val/; 'builtin' for the set that ships")


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions:
    """Calibration: how activation ranges are found."""

    calibration_data: str = option("folder of images to calibrate on, unlabelled or not; default: train/", "")
    calibration_images: int = option("number of images to calibrate on", 512, POSITIVE_COUNT)
    percentile: float = option(
        "percentage of magnitudes that the percentile calibrator keeps", 99.99, Numbers(0, 100, above=True)
    )
    seed: int = option("seed of the choice of calibration images", 0, SEED)


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """Method: what is done beside finding ranges."""

    equalization: Literal["none", Equalization] = as_in(PtqMethod, "equalization")
    identity: Identity = as_in(PtqMethod, "identity")
    weight_ranges: WeightRanges = as_in(PtqMethod, "weight_ranges")
    rounding: Rounding = as_in(PtqMethod, "rounding")
    rounding_images: int = option(
        "calibration images that rounding looks at; 0 rounds to the nearest and leaves the biases alone", 256, COUNT
    )
    reconstruction_steps: int = as_in(ReconstructionOptions, "steps")
    reconstruction_unit: Granularity = as_in(ReconstructionOptions, "granularity")
    reconstruction_loss: RoundingLoss = as_in(ReconstructionOptions, "loss")
    reconstruction_drop: float = as_in(ReconstructionOptions, "drop")
    reconstruction_gains: bool = as_in(ReconstructionOptions, "affine")


@dataclass(frozen=True, kw_only=True)
class TargetOptions:
    """Target: what the model will run on."""

    target: TargetName = option("runtime that will serve the model")
    per_tensor_weights: bool = option("one scale for all weights of a layer, for hardware that has nothing else", False)
    weight_bits: int = option("bits of the weights; fewer than 8 are stored in int8", 8, BITS)
    activation_bits: int = option("bits of the activations; fewer than 8 are simulated alone", 8, BITS)
    keep_float: str = option("layers that stay in float: first, last, or layer names, with commas", "")
    tensorrt_weights: StoredWeights = option(
        "files for tensorrt: int8 weights (10.x, 11.x), or float ones behind Q/DQ (8.x)",
        "int8",
        argument="stored_weights",
    )
    tensorrt_scales: ScaleType = option(
        "type of the scales for tensorrt, in which layers run that are not quantized (float16 not in 8.x)",
        "float32",
        argument="scale_type",
    )
    vnni: Vnni = option("whether the CPU that serves has VNNI; auto: as this one", "auto", argument="fast_int8_dot")


@dataclass(frozen=True, kw_only=True)
class MixedPrecisionOptions:
    """Mixed precision: layers with weights of different widths."""

    average_bits: float = option(
        "bits of a weight on average: each layer gets 4 or those of --weight-bits, by what it loses; 0: all the latter",
        0.0,
        Numbers(4, 8, or_zero=True),
    )


@dataclass(frozen=True, kw_only=True)
class ProofOptions:
    """Proof: where the result is measured."""

    runtimes: str = option(
        "what executes the model; pytorch is the simulation, all what is installed, auto what is usual for the target",
        AUTO,
        RUNTIME_NAMES,
    )


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """Where PyTorch computes."""

    device: Device = option("where the network is calibrated, rounded and simulated", "cpu")


@dataclass(frozen=True, kw_only=True)
class FolderOptions:
    """Output: where results go."""

    output: str = option("folder to write; it appears only when all of it is complete")
    overwrite: bool = option("replace the output folder if it exists", False)
