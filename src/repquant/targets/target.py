"""What a runtime can execute in integers: the target decides the schemes."""

from dataclasses import dataclass
from typing import Literal, get_args

from repquant.errors import InputError
from repquant.numerics.affine import Scheme

TargetName = Literal["tensorrt", "onnxruntime", "openvino"]
TARGETS: tuple[TargetName, ...] = get_args(TargetName)


@dataclass(frozen=True, kw_only=True)
class Target:
    """The grids of activations and weights on one runtime.

    Args:
        name: the runtime.
        activation: scheme of every activation, one scale per tensor.
        weight: scheme of every weight; its channel axis is the output channel, or None per tensor.
        quantizes_terms: the summands of an addition are integers; otherwise the convolution that ends in an addition
            keeps its sum in 32 bits, and only the input that is added to it is an integer.
        rounds_before_pointwise: what a nonlinear function reads is rounded; otherwise it is part of the layer in front
            of it, as a ReLU is everywhere.
        note: what the user should know about the choice, or "".
    """

    name: TargetName
    activation: Scheme
    weight: Scheme
    quantizes_terms: bool = False
    rounds_before_pointwise: bool = False
    note: str = ""


def resolve_target(
    name: str,
    *,
    per_tensor_weights: bool = False,
    fast_int8_dot: bool = True,
    weight_bits: int = 8,
    activation_bits: int = 8,
) -> Target:
    """Return the schemes for a runtime.

    TensorRT runs symmetric int8 alone. On x86 the CPU runtimes take unsigned activations (after a ReLU one more bit of
    resolution than signed ones). Without VNNI they multiply with `vpmaddubsw`, which adds two products of 8 x 8 bits in
    a saturating 16-bit accumulator: weights of 7 bits keep the sum below 2 * 255 * 63 = 32130, which fits.

    Args:
        name: one of `TARGETS`.
        per_tensor_weights: one scale for all weights of a layer, for hardware that has nothing else.
        fast_int8_dot: the CPU that will serve the model has VNNI (or another exact int8 dot product).
        weight_bits: 2 to 8; fewer than 8 are stored in int8, which every runtime can execute.
        activation_bits: 2 to 8; fewer than 8 can be simulated alone.

    Raises:
        InputError: an unknown target, or bits out of range.
    """
    if name not in TARGETS:
        raise InputError(f"unknown target {name!r}; allowed are {', '.join(TARGETS)}")
    axis = None if per_tensor_weights else 0
    notes = []
    if activation_bits < 8:
        notes.append(f"activations of {activation_bits} bits are simulated: no runtime here executes them")
    if name == "tensorrt":
        return Target(
            name="tensorrt",
            activation=Scheme(bits=activation_bits),
            weight=Scheme(bits=weight_bits, narrow=True, channel_axis=axis),
            note="; ".join(notes),
        )
    if weight_bits == 8 and not fast_int8_dot:
        weight_bits = 7
        notes.append("weights are in 7 bits: this CPU has no VNNI, and 8 bits would saturate")
    return Target(
        name="openvino" if name == "openvino" else "onnxruntime",
        activation=Scheme(bits=activation_bits, signed=False, symmetric=False),
        weight=Scheme(bits=weight_bits, narrow=True, channel_axis=axis),
        quantizes_terms=name == "onnxruntime",
        rounds_before_pointwise=name == "onnxruntime",
        note="; ".join(notes),
    )
