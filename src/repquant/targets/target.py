"""What a runtime can execute in integers and read from a file: the target decides the schemes and the storage."""

from dataclasses import dataclass
from typing import Literal, get_args

from repquant.choices import TARGETS, ScaleType, StoredWeights, TargetName
from repquant.errors import InputError
from repquant.numerics.affine import Scheme

QuantizedTerms = Literal["none", "shortcut", "all"]


@dataclass(frozen=True, kw_only=True)
class Target:
    """The grids of activations and weights on one runtime, and how its files hold them.

    What is stored as a float stands for the integers that the simulation computes with, and gives them back exactly.

    Args:
        name: the runtime.
        activation: scheme of every activation, one scale per tensor.
        weight: scheme of every weight; its channel axis is the output channel, or None per tensor.
        quantized_terms: which summands of an addition are integers. With "all" both are. Otherwise the convolution that
            ends in an addition keeps its sum in 32 bits, and what is added to it is an integer where it is the block's
            input, and with "shortcut" also where another convolution computes it. OpenVINO adds one of two rounded
            summands as it was before the rounding, so it is closer to the float network than a file with "all" says.
        rounds_before_pointwise: what a nonlinear function reads is rounded; otherwise it is part of the layer in front
            of it, as a ReLU is everywhere.
        weights: files hold int8 behind DequantizeLinear, or floats behind both, for parsers that know no other way.
        float_biases: files hold biases as floats, each an integer times input scale times weight scale; otherwise as
            int32 behind DequantizeLinear.
        note: what the user should know about the choice, or "".
    """

    name: TargetName
    activation: Scheme
    weight: Scheme
    quantized_terms: QuantizedTerms = "none"
    rounds_before_pointwise: bool = False
    weights: StoredWeights = "int8"
    float_biases: bool = False
    note: str = ""


def resolve_target(
    name: str,
    *,
    per_tensor_weights: bool = False,
    fast_int8_dot: bool = True,
    weight_bits: int = 8,
    activation_bits: int = 8,
    stored_weights: StoredWeights = "int8",
    scale_type: ScaleType = "float32",
) -> Target:
    """Return the schemes for a runtime.

    TensorRT runs symmetric int8 alone, and its parser takes no int32 (docs/decisions/0007-float-biases.md). On x86 the
    CPU runtimes take unsigned activations (after a ReLU one more bit of resolution than signed ones). Without VNNI they
    multiply with `vpmaddubsw`, which adds two products of 8 x 8 bits in a saturating 16-bit accumulator: weights of 7
    bits keep the sum below 2 * 255 * 63 = 32130, which fits. LiteRT has signed integers alone, with any zero point for
    activations (ai.google.dev/edge/litert/models/quantization_spec), and multiplies in 32 bits everywhere; so does
    XNNPACK in ExecuTorch. ncnn has symmetric int8 from -127 to 127 alone, and adds in float (src/layer/quantize.cpp
    there).

    Args:
        name: one of `TARGETS`.
        per_tensor_weights: one scale for all weights of a layer, for hardware that has nothing else.
        fast_int8_dot: the CPU that will serve the model has VNNI (or another exact int8 dot product).
        weight_bits: 2 to 8; fewer than 8 are stored in int8, which every runtime can execute, but for linear layers in
            .tflite files, which are stored in int4 where that is executed too.
        activation_bits: 2 to 8; fewer than 8 can be simulated alone.
        stored_weights: for TensorRT, "float" for its releases before 10.
        scale_type: for TensorRT, "float16" so that layers that are not quantized run in FP16.

    Raises:
        InputError: an unknown target or type, bits out of range, or types of storage that the target does not have.
    """
    for what, given, allowed in (
        ("target", name, TARGETS),
        ("type of stored weights", stored_weights, get_args(StoredWeights)),
        ("type of scales", scale_type, get_args(ScaleType)),
    ):
        if given not in allowed:
            raise InputError(f"unknown {what} {given!r}; allowed are {', '.join(allowed)}")
    if name != "tensorrt" and (stored_weights, scale_type) != ("int8", "float32"):
        raise InputError(f"stored weights {stored_weights} and scales {scale_type} are for tensorrt, not for {name}")
    axis = None if per_tensor_weights else 0
    notes = []
    if activation_bits < 8:
        notes.append(f"activations of {activation_bits} bits are simulated: no runtime here executes them")
    if name == "tensorrt":
        return Target(
            name="tensorrt",
            activation=Scheme(bits=activation_bits, scale_type=scale_type),
            weight=Scheme(bits=weight_bits, narrow=True, channel_axis=axis, scale_type=scale_type),
            quantized_terms="shortcut",
            weights=stored_weights,
            float_biases=True,
            note="; ".join(notes),
        )
    if name == "ncnn":
        return Target(
            name="ncnn",
            activation=Scheme(bits=activation_bits, narrow=True),
            weight=Scheme(bits=weight_bits, narrow=True, channel_axis=axis),
            float_biases=True,
            note="; ".join(notes),
        )
    if name in ("litert", "executorch"):
        return Target(
            name="litert" if name == "litert" else "executorch",
            activation=Scheme(bits=activation_bits, symmetric=False),
            weight=Scheme(bits=weight_bits, narrow=True, channel_axis=axis),
            quantized_terms="all",
            rounds_before_pointwise=True,
            note="; ".join(notes),
        )
    if weight_bits == 8 and not fast_int8_dot:
        weight_bits = 7
        notes.append("weights are in 7 bits: this CPU has no VNNI, and 8 bits would saturate")
    return Target(
        name="openvino" if name == "openvino" else "onnxruntime",
        activation=Scheme(bits=activation_bits, signed=False, symmetric=False),
        weight=Scheme(bits=weight_bits, narrow=True, channel_axis=axis),
        quantized_terms="all" if name == "onnxruntime" else "none",
        rounds_before_pointwise=name == "onnxruntime",
        note="; ".join(notes),
    )
