"""Post-training quantization from end to end: prepare a float model, read ranges, round.

Every step is a function of its own elsewhere; this is their order. A model is prepared once, whatever calibrators
follow: channels are scaled, then identity branches set apart, both without changing what it computes.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from repquant.errors import InputError
from repquant.models.blocks import SHORTCUT_KINDS, ShortcutKind
from repquant.models.shortcut import split_identity
from repquant.numerics.equalization import Shortcut
from repquant.quant.bias_correction import correct_biases
from repquant.quant.convert import Layer, Range, quantization_points
from repquant.quant.equalize import EQUALIZATIONS, Equalization, equalize
from repquant.quant.feedback import round_weights
from repquant.quant.reconstruct import ReconstructionOptions, reconstruct
from repquant.quant.rounded import Rounded
from repquant.quant.rounding_checkpoint import fingerprint, load_layers
from repquant.quant.weight_grids import WEIGHT_RANGES, WeightRanges, find_weight_grids
from repquant.targets.target import Target

ModuleT = TypeVar("ModuleT", bound=nn.Module)
Identity = Literal["fused"] | ShortcutKind
IDENTITIES: tuple[Identity, ...] = ("fused", *SHORTCUT_KINDS)
Rounding = Literal["feedback", "learned", "nearest"]
ROUNDINGS: tuple[Rounding, ...] = get_args(Rounding)


@dataclass(frozen=True, kw_only=True)
class PtqMethod:
    """What is done beside finding ranges.

    Attributes:
        equalization: "noise", "ranges" or "none", see `quant.equalize`.
        identity: where the identity branches go, "fused" or a kind of shortcut, see `models.shortcut`.
        weight_ranges: "max" or "mse", see `quant.weight_grids`.
        rounding: "feedback" (see `quant.feedback`), "learned" (see `quant.reconstruct`) or "nearest".
        reconstruction: how rounding is learned.

    Raises:
        InputError: a name that is not known.
    """

    equalization: Literal["none"] | Equalization = "noise"
    identity: Identity = "fused"
    weight_ranges: WeightRanges = "max"
    rounding: Rounding = "feedback"
    reconstruction: ReconstructionOptions = field(default_factory=ReconstructionOptions)

    def __post_init__(self) -> None:
        for what, given, allowed in (
            ("equalization", self.equalization, ("none", *EQUALIZATIONS)),
            ("identity", self.identity, IDENTITIES),
            ("weight ranges", self.weight_ranges, WEIGHT_RANGES),
            ("rounding", self.rounding, ROUNDINGS),
        ):
            if given not in allowed:
                raise InputError(f"{what} {given!r} was given; allowed are {', '.join(allowed)}")

    @property
    def shortcut(self) -> Shortcut:
        """What equalization has to know about the identity branches."""
        if self.identity in ("fused", "residual"):
            return "residual" if self.identity == "residual" else "inside"
        return "apart"


def prepare(
    model: ModuleT,
    method: PtqMethod,
    target: Target,
    batches: Iterable[Tensor],
    on_batch: Callable[[int], None] = lambda _: None,
) -> ModuleT:
    """Return a deploy model that computes the same and loses less when it is rounded.

    Args:
        model: deploy model without shortcuts.
        method: how.
        target: what it will run on.
        batches: images (N, 3, H, W) each, for the equalization "noise".
        on_batch: called with the number of images after each batch.
    """
    if method.equalization != "none":
        model = equalize(model, method.equalization, batches, target, method.shortcut, on_batch)
    return model if method.identity == "fused" else split_identity(model, method.identity, target.weight)


def quantize(
    model: ModuleT,
    ranges: Mapping[str, Range],
    target: Target,
    method: PtqMethod,
    batches: Iterable[Tensor],
    keep_float: Collection[str] = (),
    on_progress: Callable[[int], None] = lambda _: None,
    checkpoint: Path | None = None,
) -> ModuleT:
    """Return the quantized form of a prepared model; the arguments and errors are those of `round_model`."""
    rounded = round_model(model, ranges, target, method, batches, keep_float, on_progress, checkpoint)
    return rounded.quantized(ranges, target, keep_float)


def round_model(
    model: ModuleT,
    ranges: Mapping[str, Range],
    target: Target,
    method: PtqMethod,
    batches: Iterable[Tensor],
    keep_float: Collection[str] = (),
    on_progress: Callable[[int], None] = lambda _: None,
    checkpoint: Path | None = None,
) -> Rounded[ModuleT]:
    """Return a prepared model with rounded weights and biases that fit them, still in float.

    Args:
        model: from `prepare`.
        ranges: of each quantization point of this model.
        target: the schemes.
        method: its rounding is used here: "feedback" and "learned" round the weights for the images, "nearest" corrects
            the biases with them.
        batches: images (N, 3, H, W) each; all of them are in memory at once except for "nearest". Without any, weights
            are rounded to the nearest and biases stay as they are.
        keep_float: layers that stay in float.
        on_progress: called with what was done since the last call; `progress_total` says of how much.
        checkpoint: file that keeps the layers which learned rounding has finished, for a run that is interrupted.

    Raises:
        InputError: a point without a range; a layer that the rounding can't treat, or a checkpoint of another run.
    """
    nearest = _to_nearest(model, ranges, target, method, keep_float)
    quantized = nearest.quantized(ranges, target, keep_float)
    if method.rounding == "nearest":
        corrected = correct_biases(model, quantized, batches, on_progress)
        return _to_nearest(corrected, ranges, target, method, keep_float)
    parts = list(batches)
    if not parts:
        return nearest
    images = torch.cat(parts)
    del parts
    if method.rounding == "feedback":
        return round_weights(model, quantized, images, on_layer=on_progress)
    return reconstruct(model, quantized, images, method.reconstruction, on_step=on_progress, checkpoint=checkpoint)


def _to_nearest(
    model: ModuleT, ranges: Mapping[str, Range], target: Target, method: PtqMethod, keep_float: Collection[str]
) -> Rounded[ModuleT]:
    return Rounded(model, find_weight_grids(model, method.weight_ranges, ranges, target, keep_float))


def check_rounding_checkpoint(
    model: nn.Module,
    ranges: Mapping[str, Range],
    target: Target,
    method: PtqMethod,
    images: Tensor,
    keep_float: Collection[str],
    checkpoint: Path,
) -> None:
    """Refuse a checkpoint of another run, at once and not when `round_model` comes to it.

    The arguments are those of `round_model`, with all images (N, 3, H, W) in one batch.

    Raises:
        InputError: the file is damaged, or was written for other arguments.
    """
    quantized = _to_nearest(model, ranges, target, method, keep_float).quantized(ranges, target, keep_float)
    load_layers(checkpoint, fingerprint(model, quantized, images, method.reconstruction))


def progress_total(model: nn.Module, method: PtqMethod, images: int, keep_float: Collection[str] = ()) -> int:
    """Return what `round_model` reports to `on_progress` in all: images, layers or steps, as the rounding has it."""
    if method.rounding == "nearest":
        return images
    layers = sum(isinstance(point, Layer) for point in quantization_points(model, keep_float).values())
    return layers if method.rounding == "feedback" else layers * method.reconstruction.steps
