"""Learn, layer by layer, which way each weight rounds so that the layer's float output is reproduced.

A pass of the float model keeps its outputs at sampled positions. Then the quantized model runs once on all images, and
each layer is learned when its input arrives: the layers before it are rounded already, and the targets are those of the
float model, as in BRECQ (Li et al., ICLR 2021). The core is `repquant.numerics.adaround`.

Memory: the images; input and output of one layer for all images; the float outputs of all layers at 8,192 positions
each; at most 256 MiB of one layer's inputs. For RepVGG-A0 and 512 images of 160 px that is 1.2 GB. With `drop` the
float inputs of all layers at these positions are kept too, 0.5 GB more.
"""

import copy
import hashlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from repquant.errors import InputError
from repquant.models.blocks import DeployBlock, ShortcutBlock
from repquant.numerics.adaround import LayerRows, RoundingOptions, learn_rounding
from repquant.numerics.affine import Grid, dequantize
from repquant.numerics.patches import draw_positions, outputs_at
from repquant.quant.convert import Layer, layer_pairs
from repquant.quant.rounded import Rounded
from repquant.quant.rounding_checkpoint import LearnedLayer, LearnedLayers, fingerprint
from repquant.quant.sampling import inputs_at, maps
from repquant.simulation.layers import QuantizedConv2d, QuantizedLayer, QuantizedLinear

ModuleT = TypeVar("ModuleT", bound=nn.Module)
Granularity = Literal["layer", "block"]
Progress = Callable[[int], None]

_ROWS = 8192  # output positions of a layer that are sampled, once; at least one of each image
_ROW_BYTES = 256 << 20  # of the inputs at these positions; a layer with many weights in a channel gets fewer
_HALF_MAX = torch.finfo(torch.float16).max
_CHUNK = 32  # images that a layer computes at a time


@dataclass(frozen=True, kw_only=True)
class ReconstructionOptions(RoundingOptions):
    """How a model is reconstructed: `RoundingOptions`, and these.

    Args:
        granularity: where the error is measured: "layer", at the output of the convolution or linear layer, or "block",
            behind the ReLU of its RepVGG block, with the identity branch added that is set apart. Layers in and before
            a squeeze-and-excite block, shortcuts, linear layers, and convolutions outside a RepVGG block are measured
            at their own output in both cases.
        seed: of the batches.

    Raises:
        InputError: a value out of range.
    """

    granularity: Granularity = "layer"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.granularity not in get_args(Granularity):
            raise InputError(
                f"unknown granularity {self.granularity!r} of the reconstruction; allowed are layer, block"
            )


_DEFAULTS = ReconstructionOptions()


@torch.no_grad()
def reconstruct(
    model: ModuleT,
    quantized: nn.Module,
    images: Tensor,
    options: ReconstructionOptions = _DEFAULTS,
    *,
    on_step: Progress = lambda _: None,
    checkpoint: Path | None = None,
) -> Rounded[ModuleT]:
    """Return a copy of the float model with learned rounding, and the grids that its weights lie on.

    `quantize_model` of the two, with the ranges and the target of `quantized`, is the reconstructed model. Each weight
    goes to one of the two integers next to it; biases get an offset, and layers without one stay without. The result
    depends on nothing but the arguments and the number of threads.

    Args:
        model: deploy model in float; it is not changed.
        quantized: the same model after `quantize_model`: its grids of inputs and weights are kept.
        images: (N, 3, H, W) calibration images; 256 to 512 are enough.
        options: how to learn.
        on_step: called with the number of steps done since the last call, those of a checkpoint's layers included.
        checkpoint: file that gets each finished layer; its folder is made. If the file exists, the run goes on after
            the layers in it, with the same result as without interruption.

    Raises:
        InputError: models that do not fit each other, images that are no batch, gains on per-tensor grids, or a
            checkpoint that is damaged, of other arguments, or can't be written.
    """
    layers = _pair_layers(model, quantized, options.granularity)
    _check(layers, images, options)
    learned = LearnedLayers(checkpoint, lambda: fingerprint(model, quantized, images, options))
    if learned.layers:
        on_step(options.steps * len(learned.layers))
    waiting = {name: pair for name, pair in layers.items() if name not in learned.layers}
    if waiting:
        samples = _observe(model, waiting, images, options)

        def learn_in_flight(name: str, x: Tensor) -> QuantizedLayer:
            pair, sample = layers[name], samples.pop(name, None)
            if sample is not None:
                learned.add(name, _learn(name, pair, sample.rows(x), options, on_step))
            return pair.quantized_with(learned.layers[name])

        _run(quantized, {pair.quantized: partial(learn_in_flight, name) for name, pair in layers.items()}, images)
    return _rounded(model, layers, learned.layers)


@dataclass(frozen=True)
class _Block:
    """The block at whose end the error of its convolution is measured, in one of its forms."""

    module: DeployBlock | ShortcutBlock

    def shortcut(self, x: Tensor) -> Tensor | None:
        """Return what the block adds to the output of its convolution, for its input; None for nothing."""
        if isinstance(self.module, DeployBlock):
            return None
        y: Tensor = self.module.shortcut_term(self.module.shortcut(x))
        return y


@dataclass(frozen=True)
class _Pair:
    """A layer in float and in integers, and both forms of the block at whose end its error is measured, if any."""

    floating: Layer
    quantized: QuantizedLayer
    blocks: tuple[_Block, _Block] | None = None

    def nearest(self) -> LearnedLayer:
        integers = self.quantized.integers
        return LearnedLayer(integers.weight, integers.weight_grid.scale, integers.float_bias())

    def grid_with(self, result: LearnedLayer) -> Grid:
        return replace(self.quantized.integers.weight_grid, scale=result.scale)

    def floating_with(self, result: LearnedLayer) -> Layer:
        layer = copy.deepcopy(self.floating)
        layer.weight.copy_(dequantize(result.integers, self.grid_with(result)))
        if layer.bias is not None:
            assert result.bias is not None
            layer.bias.copy_(result.bias)
        return layer

    def quantized_with(self, result: LearnedLayer) -> QuantizedLayer:
        make = QuantizedConv2d if isinstance(self.quantized, QuantizedConv2d) else QuantizedLinear
        inputs = self.quantized.input
        scale, zero_point = torch.tensor(inputs.scale), torch.tensor(inputs.zero_point, dtype=torch.int32)
        input_grid = Grid(scale, zero_point, inputs.scheme)
        layer = make(self.floating_with(result), input_grid, self.grid_with(result))  # type: ignore[arg-type]
        assert torch.equal(layer.integers.weight, result.integers)
        return layer


def _pair_layers(model: nn.Module, quantized: nn.Module, granularity: Granularity) -> dict[str, _Pair]:
    forms = ([x.weight.shape for x in form.modules() if isinstance(x, Layer)] for form in (model, quantized))
    if next(forms) != next(forms):
        raise InputError("the quantized model has other layers than the float model; give the one it was made from")
    blocks = _blocks(model, quantized) if granularity == "block" else {}
    return {name: _Pair(*pair, blocks.get(name)) for name, pair in layer_pairs(model, quantized).items()}


def _blocks(model: nn.Module, quantized: nn.Module) -> dict[str, tuple[_Block, _Block]]:
    """Return the blocks in both forms by the name of their convolution, where nothing but a ReLU is behind the sum."""
    return {
        f"{name}.conv".lstrip("."): (_Block(block), _Block(counterpart))
        for name, block in model.named_modules()
        if isinstance(block, DeployBlock | ShortcutBlock)
        and isinstance(block.se, nn.Identity)
        and isinstance(counterpart := quantized.get_submodule(name), DeployBlock | ShortcutBlock)
    }


def _check(layers: Mapping[str, _Pair], images: Tensor, options: ReconstructionOptions) -> None:
    if not layers:
        raise InputError("there is nothing to reconstruct: no layer of the quantized model is quantized")
    if images.dim() != 4 or len(images) == 0:
        raise InputError(f"calibration images of shape {tuple(images.shape)} are no batch; give (N, 3, H, W), N > 0")
    schemes = {pair.quantized.integers.weight_grid.scheme for pair in layers.values()}
    if options.affine and any(scheme.channel_axis is None for scheme in schemes):
        raise InputError(
            "affine folds gains into one weight scale per output channel, and these weights have one per tensor; "
            "quantize the weights per channel, or reconstruct without affine"
        )


class _Sample:
    """Output positions of a layer, as many for each image, and what the layer sees and gives there.

    Args:
        pair: the layer.
        y: its float output for some images.
        images: how many there are in all.
        keep_inputs: whether float inputs are needed.
    """

    def __init__(self, pair: _Pair, y: Tensor, images: int, *, keep_inputs: bool) -> None:
        self._pair, self._input = pair, pair.quantized.input
        layer = pair.floating
        channels, weights = len(layer.weight), layer.weight[0].numel()
        groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
        row_bytes = groups * weights * (4 if keep_inputs else 2)
        self._positions = draw_positions(images, y[0].numel() // channels, min(_ROWS, _ROW_BYTES // row_bytes))
        self._shape = (self._positions.numel(), groups, weights)
        self._targets = torch.empty(self._positions.numel(), channels)
        self._float_steps = torch.empty(self._shape, dtype=torch.float16) if keep_inputs else None
        self._images_seen = 0

    def see(self, x: Tensor, y: Tensor, first: int) -> None:
        """Keep what is needed of the float layer's input and output for the images from number `first` on."""
        if first < self._images_seen:
            return  # a layer that is called again: its first call counts
        self._images_seen = first + len(x)
        rows, positions = self._among(first, len(x))
        shortcut = self._pair.blocks and self._pair.blocks[0].shortcut(x)
        total = y if shortcut is None else y + shortcut
        self._targets[rows] = outputs_at(maps(total, self._pair.floating), positions)
        if self._float_steps is not None:
            steps = inputs_at(self._pair.floating, x, positions) / self._input.scale
            self._float_steps[rows] = steps.clamp(-_HALF_MAX, _HALF_MAX).half()

    def rows(self, x: Tensor) -> LayerRows:
        """Return the rows of the quantized layer's input `x` for all images, with the targets."""
        layer, blocks = self._pair.floating, self._pair.blocks
        steps, addends = torch.empty(self._shape, dtype=torch.int16), []
        for first in range(0, len(x), _CHUNK):
            part = x[first : first + _CHUNK]
            rows, positions = self._among(first, len(part))
            steps[rows] = inputs_at(layer, self._input.steps(part), positions).short()
            if blocks and (shortcut := blocks[1].shortcut(part)) is not None:
                addends.append(outputs_at(maps(shortcut, layer), positions))
        return LayerRows(
            steps=steps,
            targets=self._targets,
            input_scale=self._input.scale,
            addend=torch.cat(addends) if addends else None,
            relu=blocks is not None,
            float_steps=self._float_steps,
        )

    def _among(self, first: int, count: int) -> tuple[slice, Tensor]:
        """Return which rows are of these images, and their positions."""
        each = self._positions.shape[1]
        return slice(first * each, (first + count) * each), self._positions[first : first + count]


def _observe(
    model: nn.Module, layers: Mapping[str, _Pair], images: Tensor, options: ReconstructionOptions
) -> dict[str, _Sample]:
    """Run the float model and return a sample of each layer that is reached."""
    samples: dict[str, _Sample] = {}
    first = 0

    def see(name: str, _layer: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> None:
        if name not in samples:
            samples[name] = _Sample(layers[name], y, len(images), keep_inputs=options.drop > 0)
        samples[name].see(inputs[0], y, first)

    with ExitStack() as hooks:
        for name, pair in layers.items():
            hooks.callback(pair.floating.register_forward_hook(partial(see, name)).remove)
        for first in range(0, len(images), _CHUNK):
            model(images[first : first + _CHUNK])
    return samples


def _learn(name: str, pair: _Pair, rows: LayerRows, options: ReconstructionOptions, on_step: Progress) -> LearnedLayer:
    layer, grid = pair.floating, pair.quantized.integers.weight_grid
    counts = grid.step_counts(layer.weight).flatten(1)
    seed = hashlib.sha256(f"{options.seed}/{name}".encode()).digest()  # of its own, whichever layers came before
    generator = torch.Generator().manual_seed(int.from_bytes(seed[:8]))
    found = learn_rounding(rows, counts, grid.scale, layer.bias, grid.scheme, options, generator, on_step)
    scale = grid.scale * found.gain if options.affine else grid.scale
    return LearnedLayer(found.integers.reshape(layer.weight.shape), scale, found.bias)


class _InFlight(nn.Module):
    """A layer that is made from its first input. It computes in chunks, so that its integers need little memory."""

    def __init__(self, make: Callable[[Tensor], QuantizedLayer]) -> None:
        super().__init__()
        self._make = make
        self._layer: QuantizedLayer | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self._layer is None:
            self._layer = self._make(x)
        first: Tensor = self._layer(x[:_CHUNK])
        y = first.new_empty(len(x), *first.shape[1:])
        y[:_CHUNK] = first
        for start in range(_CHUNK, len(x), _CHUNK):
            y[start : start + _CHUNK] = self._layer(x[start : start + _CHUNK])
        return y


def _run(
    quantized: nn.Module, makers: Mapping[QuantizedLayer, Callable[[Tensor], QuantizedLayer]], images: Tensor
) -> None:
    """Run a copy of the quantized model in which each layer is made from its input."""
    work = copy.deepcopy(quantized, {id(layer): _InFlight(make) for layer, make in makers.items()})
    for module in work.modules():
        if type(module) is DeployBlock:
            module.relu.inplace = True  # nobody else reads its input, and a copy would be the largest tensor of all
    work(images)


def _rounded(model: ModuleT, layers: Mapping[str, _Pair], results: Mapping[str, LearnedLayer]) -> Rounded[ModuleT]:
    # A layer that the images do not reach is rounded to nearest.
    chosen = {name: results.get(name) or pair.nearest() for name, pair in layers.items()}
    memo = {id(pair.floating): pair.floating_with(chosen[name]) for name, pair in layers.items()}
    return Rounded(copy.deepcopy(model, memo), {name: pair.grid_with(chosen[name]) for name, pair in layers.items()})
