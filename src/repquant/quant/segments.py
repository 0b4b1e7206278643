"""A network as a chain of segments, in which quantization points take one form or another.

So a network that is quantized in one place, or everywhere but in one, needs no second model, and what lies before that
place runs once for all of them.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

from torch import Tensor, nn

from repquant.models.network import RepVGG
from repquant.simulation.layers import QuantizedConv2d, QuantizedInput, QuantizedLayer, QuantizedLinear

Form = Literal["weights", "activations", "both"]
Segment = Callable[[Tensor], Tensor]


def run_chain(segments: Sequence[Segment], x: Tensor) -> Tensor:
    """Return what the last segment gives for the input of the first."""
    for segment in segments:
        x = segment(x)
    return x


def swap_each(
    segments: Sequence[Segment], alternatives: Sequence[Mapping[str, Segment]], x: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Run a chain, and run it again for every alternative with that one in place of its segment.

    What lies before a segment runs once for all of its alternatives, so n of them cost about n/2 runs more.

    Args:
        segments: the chain.
        alternatives: for each segment what may take its place, by name.
        x: input of the first segment.

    Returns:
        The output of the chain, and that with each alternative.
    """
    outputs = {}
    for position, segment in enumerate(segments):
        for name, alternative in alternatives[position].items():
            outputs[name] = run_chain(segments[position + 1 :], alternative(x))
        x = segment(x)
    return x, outputs


@dataclass(frozen=True)
class Point:
    """A module whose input is quantized, in float and in its quantized form."""

    name: str
    module: nn.Module
    quantized: QuantizedLayer | QuantizedInput


def _pair_points(module: nn.Module, quantized: nn.Module, name: str = "") -> Iterator[Point]:
    """Walk through both models side by side; a point comes before those inside it."""
    if isinstance(quantized, QuantizedConv2d | QuantizedLinear):
        yield Point(name, module, quantized)
        return
    if isinstance(quantized, QuantizedInput):
        yield Point(name, module, quantized)
        quantized = quantized.module
    assert type(quantized) is type(module), f"{name}: {type(quantized).__name__} for {type(module).__name__}"
    for child, inner in module.named_children():
        yield from _pair_points(inner, quantized.get_submodule(child), f"{name}.{child}" if name else child)


def segments_of(model: RepVGG, quantized: RepVGG) -> list[tuple[nn.Module, list[Point]]]:
    """Return modules whose chain is the float model, and the points in each.

    A segment takes what the one before it returns, and nothing else.

    Args:
        model: deploy model in float.
        quantized: the same model after `quantize_model`.
    """
    blocks = [block for stage in model.stages for block in stage.children()]
    points = list(_pair_points(model, quantized))
    segments = []
    for segment in (model.stem, *blocks, nn.Sequential(model.pool, nn.Flatten(1), model.head)):
        members = {id(module) for module in segment.modules()}
        segments.append((segment, [point for point in points if id(point.module) in members]))
    return segments


def assemble(segment: nn.Module, points: Sequence[Point], forms: Mapping[str, Form]) -> nn.Module:
    """Return a copy of a float segment with these points in these forms; it shares the segment's tensors."""
    memo: dict[int, Any] = {id(tensor): tensor for tensor in chain(segment.parameters(), segment.buffers())}
    for point in reversed(points):  # inner points first: the copy of a squeeze-and-excite block holds their forms
        module = copy.deepcopy(point.module, memo)
        if point.name in forms:
            memo[id(point.module)] = _in_form(module, point.quantized, forms[point.name])
    return copy.deepcopy(segment, memo)


def _in_form(module: nn.Module, quantized: QuantizedLayer | QuantizedInput, form: Form) -> nn.Module:
    """Return a point in a form; `module` is a copy of it in float that may be changed."""
    if isinstance(quantized, QuantizedInput):
        return module if form == "weights" else nn.Sequential(quantized.input, module)
    if form == "both":
        return quantized
    if form == "activations":
        return nn.Sequential(quantized.input, module)
    module.register_parameter("weight", nn.Parameter(quantized.integers.float_weight(), requires_grad=False))
    if (bias := quantized.integers.float_bias()) is not None:
        module.register_parameter("bias", nn.Parameter(bias, requires_grad=False))
    return module
