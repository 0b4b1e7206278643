"""Where quantization-aware training starts: from the best that post-training quantization finds, in every method.

Channels are scaled, ranges read and weights rounded on the deploy model, as in `quant.ptq`; what that changed is moved
into the parameters that will train.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from repquant.errors import InputError
from repquant.models.network import RepVGG
from repquant.models.reparam import reparameterize
from repquant.models.shortcut import split_identity
from repquant.quant.branches import absorb, is_residual, normalize_branches, scale_branches, training_blocks
from repquant.quant.calibrate import activation_ranges, collect_histograms
from repquant.quant.convert import quantization_points, quantize_model
from repquant.quant.equalize import apply_scales, find_scales
from repquant.quant.feedback import round_weights
from repquant.quant.insert_bn import NormalizedConv2d, insert_bn, measure_outputs, without_statistics
from repquant.quant.ptq import PtqMethod
from repquant.quant.qat import QatStart
from repquant.quant.qat_layers import EquivalentKernel, FoldedKernel, KernelSource
from repquant.quant.weight_grids import find_weight_grids
from repquant.targets.target import Target

Batches = Callable[[], Iterable[Tensor]]
"""Gives the same images (N, 3, H, W) each time that it is called."""


@dataclass(frozen=True, kw_only=True)
class StartOptions:
    """How the start is found.

    Attributes:
        method: of quantization-aware training: "plain", "inserted-bn" or "equivalent-kernel".
        ptq: equalization; ranges of weights; rounding by "feedback" or "nearest"; identities stay in the kernels
            ("fused") or are additions beside them ("residual").
        calibrator: of the activation ranges.
        percentile: of the calibrator of that name.

    Raises:
        InputError: other shortcuts or learned rounding, which training has no form for.
    """

    method: str
    ptq: PtqMethod
    calibrator: str = "mse"
    percentile: float = 99.99

    def __post_init__(self) -> None:
        if self.ptq.identity not in ("fused", "residual"):
            raise InputError(
                f"identity {self.ptq.identity!r} was given; training keeps identity branches in the kernel or adds "
                "them: pass --identity fused or residual"
            )
        if self.ptq.identity == "residual" and self.method == "inserted-bn":
            raise InputError("--method inserted-bn folds whole kernels; pass --identity fused with it")
        if self.ptq.rounding == "learned":
            raise InputError(
                "learned rounding was given: training learns it itself; pass --rounding feedback or nearest"
            )


def start_qat(
    model: RepVGG,
    options: StartOptions,
    target: Target,
    calibration: Batches,
    rounding: Batches,
    keep_float: Collection[str] = (),
    inserted: RepVGG | None = None,
) -> QatStart:
    """Return kernels, ranges and grids to train from.

    Args:
        model: training form; deploy form will do for "plain" and "inserted-bn".
        options: how.
        target: the schemes.
        calibration: images that ranges and scales, and statistics of inserted normalizations, come from.
        rounding: images that weights are rounded for; with none they are rounded to the nearest.
        keep_float: layers that stay in float.
        inserted: for "inserted-bn", the deploy model with its normalizations; None measures them.

    Raises:
        InputError: a deploy model for "equivalent-kernel".
    """
    require_branches(model, options.method)
    deploy = reparameterize(model)
    method = options.ptq
    if method.equalization != "none":
        scales = find_scales(deploy, method.equalization, calibration(), target, method.shortcut)
        deploy, model = apply_scales(deploy, *scales), scale_branches(model, *scales)
    deploy = _set_apart(deploy, method)
    histograms = collect_histograms(deploy, calibration(), keep_float)
    ranges = activation_ranges(options.calibrator, histograms, target, percentile=options.percentile)
    weight_grids = find_weight_grids(deploy, method.weight_ranges, ranges, target, keep_float)
    if method.rounding == "feedback" and (parts := list(rounding())):
        nearest = quantize_model(deploy, ranges, target, keep_float, weight_grids)
        rounded = round_weights(deploy, nearest, torch.cat(parts))
        deploy, weight_grids = rounded.model, dict(rounded.weight_grids)
    if options.method == "inserted-bn":
        inserted = inserted or insert_bn(deploy, measure_outputs(deploy, calibration()))
    return QatStart(deploy, _sources(model, deploy, options.method, inserted), ranges, weight_grids)


def bare_start(model: RepVGG, options: StartOptions, keep_float: Collection[str] = ()) -> QatStart:
    """Return a start with the structure alone, for a network whose parameters and grids come from a checkpoint."""
    require_branches(model, options.method)
    deploy = _set_apart(reparameterize(model), options.ptq)
    points = quantization_points(deploy, keep_float)
    inserted = without_statistics(deploy) if options.method == "inserted-bn" else None
    return QatStart(deploy, _sources(model, deploy, options.method, inserted), dict.fromkeys(points, (0.0, 1.0)))


def require_branches(model: RepVGG, method: str) -> None:
    """Refuse a model without branches for the method that trains them.

    Raises:
        InputError: there are none.
    """
    if method == "equivalent-kernel" and not training_blocks(model):
        raise InputError(
            "--method equivalent-kernel trains the branches that a block's kernel is made of, and this checkpoint is "
            "in deploy form: its branches are fused and can't be had back. Give the checkpoint in training form, or "
            "pass --method plain"
        )


def _set_apart(deploy: RepVGG, method: PtqMethod) -> RepVGG:
    return deploy if method.identity == "fused" else split_identity(deploy, "residual")


def _sources(model: RepVGG, deploy: RepVGG, method: str, inserted: RepVGG | None) -> dict[str, KernelSource]:
    if method == "equivalent-kernel":
        branches = normalize_branches(absorb(model, deploy))
        return {
            f"{name}.conv": EquivalentKernel(block, is_residual(deploy, name))
            for name, block in training_blocks(branches).items()
        }
    if inserted is not None:
        return {
            name: FoldedKernel(layer.conv, layer.bn)
            for name, layer in inserted.named_modules()
            if isinstance(layer, NormalizedConv2d)
        }
    return {}
