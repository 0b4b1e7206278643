"""Cross-layer equalization: scale channels so that rounding loses less, without changing what the network computes."""

import copy
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor, fx, nn

from repquant.errors import InputError
from repquant.models.blocks import SqueezeExcite
from repquant.numerics.diagonal import diagonal_center
from repquant.numerics.equalization import (
    LayerScales,
    LayerStatistics,
    Shortcut,
    TensorStatistics,
    balance_ranges,
    chain_gains,
    gain_through,
    minimize_noise,
)
from repquant.quant.convert import Layer
from repquant.quant.diagonal import may_have_identity
from repquant.quant.sharing import refuse_shared_parameters
from repquant.targets.target import Target

Equalization = Literal["ranges", "noise"]
EQUALIZATIONS: tuple[Equalization, ...] = get_args(Equalization)

ModuleT = TypeVar("ModuleT", bound=nn.Module)

_QUIET = 0.01  # a channel counts as at least this share of the loudest: scales of silent channels stay bounded
_TRANSPARENT = (nn.ReLU, nn.Identity, nn.Dropout, nn.AdaptiveAvgPool2d, nn.AvgPool2d, nn.MaxPool2d, nn.Flatten)
_TRANSPARENT_CALLS = {torch.flatten, torch.relu, "flatten", "relu"}


@dataclass(frozen=True)
class Link:
    """Two layers of which the second alone reads the first, and the squeeze-and-excite blocks between them."""

    producer: str
    consumer: str
    excitations: tuple[str, ...]


def find_chain(model: nn.Module) -> tuple[Link, ...]:
    """Return the links between the convolutions and linear layers of a network without branches, in forward order.

    Between two layers only modules may stand that commute with positive channel scales: ReLU, pooling, flattening,
    dropout, and squeeze-and-excite blocks.

    Raises:
        InputError: a layer or squeeze-and-excite block that is used twice or shares a parameter with another one, a
            layer whose output has two consumers, or a module between two layers that is not known to commute; it is
            named.
    """
    tracer = _Tracer()
    graph = tracer.trace(model)
    modules = dict(model.named_modules())
    parts = [
        node
        for node in graph.nodes
        if node.op == "call_module" and isinstance(modules[node.target], Layer | SqueezeExcite)
    ]
    calls = Counter(str(node.target) for node in parts)
    if shared := [name for name, count in calls.items() if count > 1]:
        raise InputError(
            f"layer {shared[0]} is used {calls[shared[0]]} times: it can't be equalized; leave equalization out"
        )
    refuse_shared_parameters({name: modules[name] for name in calls}, "leave equalization out")
    links = [_follow(node, modules) for node in parts if isinstance(modules[str(node.target)], Layer)]
    return tuple(link for link in links if link is not None)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        return isinstance(module, SqueezeExcite) or super().is_leaf_module(module, qualified_name)


def _follow(node: fx.Node, modules: dict[str, nn.Module]) -> Link | None:
    producer = str(node.target)
    excitations: list[str] = []
    while True:
        users = list(node.users)
        if len(users) > 1:
            names = " and ".join(str(user.target) for user in users)
            raise InputError(f"the output of layer {producer} has two consumers, {names}; leave equalization out")
        if not users or users[0].op == "output":
            return None
        node = users[0]
        if node.op == "call_module":
            module = modules[str(node.target)]
            if isinstance(module, Layer):
                _check_channels(producer, modules[producer], str(node.target), module)
                return Link(producer, str(node.target), tuple(excitations))
            if isinstance(module, SqueezeExcite):
                excitations.append(str(node.target))
            elif not isinstance(module, _TRANSPARENT):
                raise InputError(
                    f"{type(module).__name__} {node.target} behind layer {producer} may not commute with channel "
                    "scales; leave equalization out"
                )
        elif node.target not in _TRANSPARENT_CALLS:
            raise InputError(f"operation {node.name} behind layer {producer} is not known; leave equalization out")


def _check_channels(producer: str, before: nn.Module, consumer: str, after: Layer) -> None:
    assert isinstance(before, Layer)
    outputs = len(before.weight)
    inputs = after.in_channels if isinstance(after, nn.Conv2d) else after.in_features
    if inputs != outputs:
        raise InputError(
            f"layer {consumer} reads {inputs} inputs, {producer} has {outputs} channels: pool to one position in front "
            "of the linear layer, or leave equalization out"
        )


@torch.no_grad()
def apply_scales(model: ModuleT, links: Sequence[Link], scales: Sequence[Tensor]) -> ModuleT:
    """Return a copy in which the tensor of each link is multiplied by its scales (C,); it computes the same."""
    scaled = copy.deepcopy(model)
    for link, scale in zip(links, scales, strict=True):
        factor = scale.to(torch.float32)
        producer, consumer = _layer(scaled, link.producer), _layer(scaled, link.consumer)
        producer.weight.mul_(factor.reshape(-1, *[1] * (producer.weight.dim() - 1)))
        if producer.bias is not None:
            producer.bias.mul_(factor)
        divide_columns(consumer, factor)
        for name in link.excitations:
            excitation = scaled.get_submodule(name)
            assert isinstance(excitation, SqueezeExcite)
            divide_columns(excitation.down, factor)
    return scaled


def divide_columns(layer: Layer, factor: Tensor) -> None:
    """Divide a layer's weights, in place, by the factor (I,) of the input channel that they multiply."""
    if layer.weight.dim() == 2:
        layer.weight.div_(factor)
        return
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    # Output channels of group g read the input channels of group g.
    columns = factor.reshape(groups, 1, -1, 1, 1)
    layer.weight.div_(columns.expand(-1, len(layer.weight) // groups, -1, -1, -1).reshape(len(layer.weight), -1, 1, 1))


def equalize(
    model: ModuleT,
    method: Equalization,
    batches: Iterable[Tensor],
    target: Target,
    shortcut: Shortcut = "inside",
    on_batch: Callable[[int], None] = lambda _: None,
) -> ModuleT:
    """Return a copy of a deploy model whose channels are scaled for quantization; it computes the same.

    The arguments and errors are those of `find_scales`.
    """
    return apply_scales(model, *find_scales(model, method, batches, target, shortcut, on_batch))


def find_scales(
    model: nn.Module,
    method: Equalization,
    batches: Iterable[Tensor],
    target: Target,
    shortcut: Shortcut = "inside",
    on_batch: Callable[[int], None] = lambda _: None,
) -> tuple[tuple[Link, ...], list[Tensor]]:
    """Return the links between the layers of a deploy model, and the scales (C,) of the tensor of each.

    Args:
        model: without shortcuts, which are set apart afterwards.
        method: "ranges" (the pairwise rule, which needs no images) or "noise" (the noise model).
        batches: images (N, 3, H, W) each; one pass, with memory that does not depend on their number.
        target: the grids that the noise model reckons with.
        shortcut: where the identity branches will be kept.
        on_batch: called with the number of images after each batch.

    Raises:
        InputError: a network that is no chain of layers, see `find_chain`; no images.
    """
    links = find_chain(model)
    if not links:
        return (), []
    if method == "ranges":
        return links, _range_scales(model, links)
    names = [links[0].producer, *(link.consumer for link in links)]
    moments = _measure(model, names, batches, on_batch)
    energies = [_kernels(_layer(model, name)).square().sum(2).unsqueeze(0) for name in names]
    gains = chain_gains(energies, [moments[name].active for name in names[1:]])
    scales, indices = _numbered(links, model)
    joined = minimize_noise(
        [
            _statistics(_layer(model, name), moments[name], gain, around, target)
            for name, gain, around in zip(names, gains, itertools.pairwise(indices), strict=True)
        ],
        [
            _input_statistics(moments[name], gain_through(energy, gain), index)
            for name, energy, gain, index in zip(names[1:], energies[1:], gains[1:], indices[1:-1], strict=True)
        ],
        sum(scales),
        shortcut,
        weight_steps=target.weight.qmax,
        activation_steps=target.activation.qmax,
    )
    return links, list(joined.split(scales))


def _numbered(links: Sequence[Link], model: nn.Module) -> tuple[list[int], list[Tensor]]:
    """Return how many channels each link has, and the indices of their scales; -1 in front of the first and behind."""
    counts = [len(_layer(model, link.producer).weight) for link in links]
    first, last = _layer(model, links[0].producer), _layer(model, links[-1].consumer)
    inputs = first.in_channels if isinstance(first, nn.Conv2d) else first.in_features
    indices = torch.arange(sum(counts)).split(counts)
    return counts, [torch.full((inputs,), -1), *indices, torch.full((len(last.weight),), -1)]


def _layer(model: nn.Module, name: str) -> Layer:
    layer = model.get_submodule(name)
    assert isinstance(layer, Layer)
    return layer


def _range_scales(model: nn.Module, links: Sequence[Link]) -> list[Tensor]:
    counts, indices = _numbered(links, model)
    layers = [
        LayerScales(
            inputs=before,
            outputs=after,
            magnitude=_kernels(_layer(model, name)).abs().amax(2).unsqueeze(0),
        )
        for name, (before, after) in zip(
            (links[0].producer, *(link.consumer for link in links)), itertools.pairwise(indices), strict=True
        )
    ]
    return list(balance_ranges(layers, sum(counts)).split(counts))


@dataclass
class _Moments:
    """Streaming statistics of a layer's input, (C,) each."""

    values: int = 0
    images: int = 0
    total: Tensor | float = 0.0
    squares: Tensor | float = 0.0
    positive: Tensor | float = 0.0
    image_amax: Tensor | float = 0.0

    def update(self, x: Tensor) -> None:
        x = x.reshape(*x.shape[:2], -1)
        self.values += len(x) * x.shape[2]
        self.images += len(x)
        self.total += x.sum((0, 2), dtype=torch.float64)
        self.squares += x.square().sum((0, 2), dtype=torch.float64)
        self.positive += (x > 0).sum((0, 2)).double()
        self.image_amax += x.abs().amax(2).sum(0, dtype=torch.float64)

    @property
    def variance(self) -> Tensor:
        mean = torch.as_tensor(self.total) / self.values
        return (torch.as_tensor(self.squares) / self.values - mean.square()).clamp(min=0)

    @property
    def active(self) -> Tensor:
        return torch.as_tensor(self.positive) / self.values


@torch.no_grad()
def _measure(
    model: nn.Module, names: Sequence[str], batches: Iterable[Tensor], on_batch: Callable[[int], None]
) -> dict[str, _Moments]:
    moments = {name: _Moments() for name in names}
    with ExitStack() as hooks:
        for name in names:
            layer = _layer(model, name)
            hooks.callback(layer.register_forward_pre_hook(_recorder(moments[name])).remove)
        for batch in batches:
            model(batch)
            on_batch(len(batch))
    if not moments[names[0]].images:
        raise InputError("there are no calibration images; give a folder that holds some")
    return moments


def _recorder(moments: _Moments) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def record(_layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        moments.update(inputs[0])

    return record


def _statistics(
    layer: Layer, inputs: _Moments, gain: Tensor, around: tuple[Tensor, Tensor], target: Target
) -> LayerStatistics:
    kernels = _kernels(layer)
    magnitude = kernels.abs()
    diagonal = None
    if may_have_identity(layer):
        groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
        channels = torch.arange(len(kernels))
        diagonal = diagonal_center(layer.weight.detach(), groups).double()
        magnitude[channels, channels, kernels.shape[2] // 2] = 0.0
    return LayerStatistics(
        inputs=around[0],
        outputs=around[1],
        magnitude=magnitude.amax(2).unsqueeze(0),
        diagonal=diagonal,
        seen=(kernels != 0).any(2).double().unsqueeze(0),
        variance=inputs.variance,
        gain=gain,
        taps=kernels.shape[2],
        one_step=() if target.weight.channel_axis is not None else (0, 1),
    )


def _input_statistics(inputs: _Moments, gain: Tensor, index: Tensor) -> TensorStatistics:
    amax = torch.as_tensor(inputs.image_amax) / inputs.images
    amax = amax.clamp(min=float(amax.max()) * _QUIET)
    return TensorStatistics(channels=index, high=amax, low=torch.zeros_like(amax), gain=gain)


def _kernels(layer: Layer) -> Tensor:
    """Return the weights as (O, I, taps) in float64, zero outside the groups."""
    weight = layer.weight.detach().double().flatten(2) if layer.weight.dim() == 4 else layer.weight.detach().double()
    weight = weight.reshape(*weight.shape[:2], -1).clone()
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    if groups == 1:
        return weight
    blocks = weight.chunk(groups)
    full = torch.zeros(len(weight), weight.shape[1] * groups, weight.shape[2], dtype=weight.dtype)
    rows, columns = len(weight) // groups, weight.shape[1]
    for group, block in enumerate(blocks):
        full[group * rows : (group + 1) * rows, group * columns : (group + 1) * columns] = block
    return full
