"""What several verbs ask for, as dataclasses: one field an option, its help in the field.

Nothing heavy is imported here: the parser of every verb is built before one is chosen.
"""

import os
from dataclasses import MISSING, dataclass, field
from typing import Any

from repquant.errors import InputError
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
    SHARE,
    Numbers,
)

_WORKERS = max(32, 4 * (os.cpu_count() or 1))
"""Decoding processes beyond this only take memory."""


def option(help: str, default: Any = MISSING, allowed: Numbers | None = None) -> Any:
    """Return a dataclass field with a help text, and the range of its numbers; without a default it is required."""
    return field(default=default, metadata={"help": help, "allowed": allowed})


def argument(help: str) -> Any:
    """Return a required field that is given by its place instead of by a flag."""
    return field(metadata={"help": help, "positional": True})


def split_names(
    value: str, allowed: tuple[str, ...], what: str, everything: tuple[str, ...] | None = None
) -> tuple[str, ...]:
    """Return the names in a comma-separated list, in order and without repetition.

    `all` stands for `everything`, or for all that are allowed.

    Raises:
        InputError: a name that is not allowed, or none at all.
    """
    names = tuple(dict.fromkeys(name.strip() for name in value.split(",") if name.strip()))
    if names == ("all",):
        return allowed if everything is None else everything
    unknown = [name for name in names if name not in allowed]
    if unknown or not names:
        given = ", ".join(map(repr, unknown)) or "nothing"
        raise InputError(f"{what}: {given} was given; allowed are {', '.join(allowed)}, several with commas, or all")
    return names


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The float model."""

    arch: str = option("architecture, for example RepVGG-A0")
    num_classes: int = option("number of classes of the checkpoint", 1000, CLASSES)
    weights: str = option("checkpoint: .pth or .safetensors, training or deploy form; 'builtin' for the one that ships")


@dataclass(frozen=True, kw_only=True)
class NetworkOptions(ModelOptions):
    """The float network: an architecture of the zoo with its checkpoint, or one of the user's own."""

    model: str = option(
        "network of your own, package.module:function or file.py:function; in place of --arch, and --weights may be "
        "left out",
        "",
    )
    arch: str = option("architecture, for example RepVGG-A0", "")
    weights: str = option(
        "checkpoint: .pth or .safetensors, training or deploy form; 'builtin' for the one that ships", ""
    )


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """How images become batches."""

    image_size: int = option("side of the square images that the network sees, in pixels", 224, IMAGE_SIDE)
    crop_ratio: float = option(
        "image size / resized shorter side: 0.875 for ImageNet, 1.0 for no margin", 0.875, CROP_RATIO
    )
    mean: tuple[float, float, float] = option("channel means for normalization", (0.485, 0.456, 0.406), MEANS)
    std: tuple[float, float, float] = option(
        "channel standard deviations for normalization", (0.229, 0.224, 0.225), DEVIATIONS
    )
    batch_size: int = option("images a batch", 32, BATCH)
    workers: int = option("processes that decode images; 0 decodes in the main process", 0, Numbers(0, _WORKERS))
    skip_unreadable: bool = option("go on without images that can't be read, and count them", False)


@dataclass(frozen=True, kw_only=True)
class DataOptions(ImageOptions):
    """Where the images are."""

    data: str = option("folder with class folders in train/ and val/; 'builtin' for the set that ships")


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions:
    """How activation ranges are found."""

    calibration_data: str = option("folder of images to calibrate on, unlabelled or not; default: train/", "")
    calibration_images: int = option("number of images to calibrate on", 512, POSITIVE_COUNT)
    percentile: float = option(
        "percentage of magnitudes that the percentile calibrator keeps", 99.99, Numbers(0, 100, above=True)
    )
    seed: int = option("seed of the choice of calibration images", 0, SEED)


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """What is done beside finding ranges."""

    equalization: str = option(
        "scale channels before rounding: noise (by a model of the noise), ranges or none", "noise"
    )
    identity: str = option(
        "where identity branches go: fused (in the kernel), or a shortcut: residual, depthwise or coarse-fine", "fused"
    )
    weight_ranges: str = option(
        "ranges of weights: max, or mse (least squared error without clipping the identity branch; for few bits)", "max"
    )
    rounding: str = option(
        "feedback (for the inputs that a layer meets), learned (AdaRound; minutes) or nearest (with corrected biases)",
        "feedback",
    )
    rounding_images: int = option(
        "calibration images that rounding looks at; 0 rounds to the nearest and leaves the biases alone", 256, COUNT
    )
    reconstruction_steps: int = option("learned rounding: steps a layer", 1000, POSITIVE_COUNT)
    reconstruction_unit: str = option("learned rounding: where the error is measured, layer or block", "layer")
    reconstruction_loss: str = option("learned rounding: mse, or mae (RepAPQ)", "mse")
    reconstruction_drop: float = option("learned rounding: share of inputs left in float (QDrop has 0.5)", 0.0, SHARE)
    reconstruction_gains: bool = option("learned rounding: learn a gain for each output channel (RepAPQ)", False)


@dataclass(frozen=True, kw_only=True)
class TargetOptions:
    """What the model will run on."""

    target: str = option("runtime that will serve the model: tensorrt, onnxruntime or openvino")
    per_tensor_weights: bool = option("one scale for all weights of a layer, for hardware that has nothing else", False)
    weight_bits: int = option("bits of the weights, 2 to 8; fewer than 8 are stored in int8", 8, BITS)
    activation_bits: int = option("bits of the activations, 2 to 8; fewer than 8 are simulated alone", 8, BITS)
    keep_float: str = option("layers that stay in float: first, last, or layer names, with commas", "")
    tensorrt_weights: str = option(
        "files for tensorrt: int8 weights (10.x, 11.x), or float ones behind Q/DQ (8.x)", "int8"
    )
    tensorrt_scales: str = option(
        "type of the scales for tensorrt, in which layers run that are not quantized: float32 or float16 (not in 8.x)",
        "float32",
    )
    vnni: str = option("whether the CPU that serves has VNNI: auto (as this one), yes or no", "auto")


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """Where PyTorch computes."""

    device: str = option("where the network is calibrated, rounded and simulated: cpu or cuda", "cpu")


@dataclass(frozen=True, kw_only=True)
class FolderOptions:
    """Where results go."""

    output: str = option("folder to write; it appears only when all of it is complete")
    overwrite: bool = option("replace the output folder if it exists", False)
