"""The sentence that says what to do next about the loss of a quantized network."""

from collections.abc import Iterator
from itertools import islice

from repquant.methods.method import PtqMethod
from repquant.methods.sensitivity import Sensitivity
from repquant.report.analysis import MOST, recovered_share, ruled_by_diagonal, weights_share, worst_layer
from repquant.targets.target import Target

NEGLIGIBLE_KL = 1e-3
"""Nats; below it a network answers as its float original on all but a few images in a thousand."""

_CURES = 2  # that are named in a sentence


def advice(sensitivity: Sensitivity, method: PtqMethod, calibrator: str, target: Target) -> str:
    """Say in one sentence what to do next.

    Nothing where the KL is negligible. Else the larger of weights and activations is to blame, unless one layer alone
    causes at least half of the KL; where that layer's weights suffer from its diagonal, there are better cures than to
    keep it in float. What has been done already is not advised again.

    Args:
        sensitivity: what was measured.
        method: that the network was quantized with.
        calibrator: of its activations.
        target: its schemes.
    """
    kl, share = sensitivity.both.harm, weights_share(sensitivity)
    if kl < NEGLIGIBLE_KL:
        return f"The KL to float is {kl:.1e}, below {NEGLIGIBLE_KL:.0e}: there is nothing to do."
    diagonal = ruled_by_diagonal(sensitivity)
    from_weights = share is not None and share >= MOST
    cures = list(_for_weights(method, target, diagonal) if from_weights else _for_activations(method, calibrator))
    culprit = worst_layer(sensitivity)
    part = 0.0 if culprit is None else recovered_share(sensitivity, culprit)
    if culprit is not None and part >= MOST and not (from_weights and culprit.name in diagonal and cures):
        name = culprit.name
        return f"Layer {name} alone causes {100 * part:.0f} % of the KL: keep it in float ({_keep_float(name)})."
    cures += _more_bits(target, from_weights)
    if culprit is not None and part > 0:
        cures.append(f"keep {culprit.name} in float, which takes {100 * part:.0f} % away ({_keep_float(culprit.name)})")
    cures.append("train with the rounding in the loop (repquant qat)")
    return f"{_finding(share, diagonal)}: {' or '.join(islice(cures, _CURES))}."


def _keep_float(name: str) -> str:
    return f"`keep_float={(name,)}`"


def _finding(weights: float | None, diagonal: tuple[str, ...]) -> str:
    if weights is None:
        return "Neither weights nor activations do harm by themselves"
    if weights < MOST:
        return f"The activations cause {100 * (1 - weights):.0f} % of the KL"
    if not diagonal:
        return f"The weights cause {100 * weights:.0f} % of the KL, and no identity branch explains it"
    layers = "1 layer has its" if len(diagonal) == 1 else f"{len(diagonal)} layers have their"
    return (
        f"The weights cause {100 * weights:.0f} % of the KL, and {layers} diagonal, where the identity branch lands, "
        "as the largest weight"
    )


def _for_weights(method: PtqMethod, target: Target, diagonal: tuple[str, ...]) -> Iterator[str]:
    """Give what lowers the error of weights, from cheap to dear, as far as it is not done yet."""
    scaled, rounded = method.equalization == "noise", method.rounding != "nearest"
    if not scaled and not rounded:
        yield (
            "scale the channels and round with error feedback (`equalization='noise'` `rounding='feedback'`, which are "
            "the defaults)"
        )
    elif not scaled:
        yield "scale the channels (`equalization='noise'`)"
    elif not rounded:
        yield "round with error feedback (`rounding='feedback'`)"
    if diagonal and method.identity == "fused" and _gains_from_residual(target):
        yield "set the identity apart (`identity='residual'`)"
    if method.rounding != "learned":
        yield "learn the rounding, in minutes (`rounding='learned'`)"


def _gains_from_residual(target: Target) -> bool:
    """Whether an addition behind the convolution loses less than it gains, see results/a0-ptq-steps.md.

    ONNX Runtime ends the convolution in 8 bits before it adds. With signed activations, those are most of the loss as
    long as weights have 8 bits.
    """
    return target.name == "openvino" or (target.name == "tensorrt" and target.weight.bits < 8)


def _for_activations(method: PtqMethod, calibrator: str) -> Iterator[str]:
    """Give what lowers the error of activations, from cheap to dear, as far as it is not done yet."""
    if method.equalization != "noise":
        yield "scale the channels (`equalization='noise'`)"
    if calibrator == "max":
        yield "use a calibrator that clips outliers (`calibrator='mse'`)"
    elif calibrator == "mse":
        yield "compare the calibrators (`calibrator='all'`)"
    if method.rounding != "learned":
        yield "learn the rounding for the inputs as they are quantized, in minutes (`rounding='learned'`)"


def _more_bits(target: Target, from_weights: bool) -> Iterator[str]:
    if from_weights:
        if target.weight.channel_axis is None:
            yield "give each channel a scale, if the hardware can (without `per_tensor_weights`)"
        if target.weight.bits < 8:
            where = "" if target.name == "tensorrt" else " `fast_int8_dot=True`, on a CPU that has it"
            yield f"use more bits for the weights (`weight_bits=8`{where})"
    elif target.activation.bits < 8:
        yield "use more bits for the activations (`activation_bits=8`)"
