"""From a float network and calibration batches to its INT8 form for a target."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from os import PathLike
from pathlib import Path
from typing import Any

from torch import fx, nn

from repquant.check import require_taken
from repquant.choices import Calibrator, EndType
from repquant.errors import InputError
from repquant.export.files import export_file, require_suffix
from repquant.graph.batches import WithoutImages, come_in_order, example_of, first_images, rereadable
from repquant.graph.capture import Captured
from repquant.graph.devices import device_of, full_precision, require_float32
from repquant.graph.interface import captured_of
from repquant.graph.layout import Layout, find_layout
from repquant.graph.operators import layer_nodes
from repquant.graph.plan import Plan, make_plan
from repquant.graph.run import Batch
from repquant.methods.calibrate import collect_with_outliers, find_ranges
from repquant.methods.default_calibrator import default_calibrator
from repquant.methods.method import PtqMethod
from repquant.methods.mixed_precision import check_average_bits, choose_weight_bits, preparing_target
from repquant.methods.ptq import prepare, round_graph
from repquant.methods.rounded import Rounded
from repquant.numerics.histogram import Histogram
from repquant.reparameterize import reparameterize
from repquant.simulation.network import quantized_layers, simulate
from repquant.targets.target import Target, resolve_target

Progress = Callable[[str, int], None]
"""Called with the name of a step and what was done of it since the last call: images, layers or learning steps."""


def _silent(_step: str, _done: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Layer:
    """How one layer or operator computes.

    Attributes:
        name: path of the layer in the user's module, or the name of an operator in the graph.
        precision: "int8" (by the bits of the weights: "int4" and so on) or "float32".
        reason: why it computes in float; "" for integers.
    """

    name: str
    precision: str
    reason: str = ""


@dataclass(frozen=True)
class Quantized:
    """A network in integers: it can be called, looked at and saved.

    Attributes:
        float_graph: the float network with its weights on their grids; biases and channel scales may have changed.
        plan: where it is rounded, and on which grids.
        outliers: places of the calibration images that were left out (`methods.outlying_images`).
    """

    float_graph: fx.GraphModule
    plan: Plan
    outliers: tuple[int, ...] = field(default=(), kw_only=True)

    @cached_property
    def module(self) -> fx.GraphModule:
        """The simulation: it takes and returns what the user's module does, and multiplies the file's integers."""
        return simulate(self.float_graph, self.plan)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the simulation."""
        return self.module(*args, **kwargs)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Every layer in the order of computation, then the operators that compute in float, with the reason."""
        bits = {name: layer.integers.weight_grid.scheme.bits for name, layer in quantized_layers(self.module).items()}
        floats = self.plan.layout.floats
        layers = [
            Layer(name, f"int{bits[name]}") if name in bits else Layer(name, "float32", floats[name])
            for name in layer_nodes(self.float_graph)
        ]
        named = {layer.name for layer in layers}
        return (*layers, *(Layer(name, "float32", reason) for name, reason in floats.items() if name not in named))

    def save(
        self,
        path: str | PathLike[str],
        *,
        inputs: Sequence[str] = (),
        outputs: Sequence[str] = (),
        batch: int | None = None,
        input_type: EndType = "float32",
        output_type: EndType = "float32",
    ) -> Path:
        """Write the file that the target's runtime takes, whole or not at all, and return its path.

        Args:
            path: ends in `.onnx`, in `.tflite` for LiteRT, in `.pte` for ExecuTorch or in `.param` for ncnn, whose
                numbers go to a `.bin` file of the same name.
            inputs: names of the inputs; those of `forward` by default.
            outputs: names of the outputs; the keys of a returned dict by default, else `output`.
            batch: number of images that a .tflite or .pte file takes; None for any, where the network takes any (a .pte
                file is then for one, and several run one after the other).
            input_type: of a .tflite file: "float32", or "int8" or "uint8" on the grid that is written beside it.
            output_type: of a .tflite file, as `input_type`.

        Raises:
            InputError: a suffix that the target has no file for, activations that are not of 8 bits, an operator or a
                setting that the file can't hold, or a folder that can't be written.
        """
        path, target = Path(path), self.plan.target
        require_suffix(target.name, path.suffix)
        if target.activation.bits != 8:
            raise InputError(f"activations of {target.activation.bits} bits can only be simulated; a file needs 8")
        export_file(
            self.module,
            path,
            target,
            inputs=inputs,
            outputs=outputs,
            batch=batch,
            input_type=input_type,
            output_type=output_type,
        )
        require_taken(path, target.name)
        return path


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """A network that is ready to be rounded: prepared for its target, with the histograms that every calibrator reads.

    Attributes:
        graph: float, channels scaled, identity branches where the method wants them.
        layout: where it will be rounded.
        histograms: tensor name -> histogram.
        batches: that they are of; what follows reads these too.
        target: the schemes.
        method: what is done beside finding ranges.
        outliers: places of the images that set the network off; `calibrate` leaves them out of `batches`.
    """

    graph: fx.GraphModule
    layout: Layout
    histograms: dict[str, Histogram]
    batches: Iterable[Batch]
    target: Target
    method: PtqMethod
    outliers: tuple[int, ...] = ()

    def plan(
        self, calibrator: str, *, percentile: float = 99.99, on_batch: Callable[[int], None] = lambda _: None
    ) -> Plan:
        """Return the plan with the ranges that a calibrator finds; see `methods.calibrate.find_ranges`."""
        ranges = find_ranges(
            calibrator,
            self.graph,
            self.layout,
            self.histograms,
            self.target,
            self.batches,
            percentile=percentile,
            on_batch=on_batch,
        )
        return make_plan(self.layout, ranges, self.target)

    def with_average_bits(
        self,
        plan: Plan,
        average_bits: float,
        batches: Iterable[Batch],
        on_batch: Callable[[int], None] = lambda _: None,
    ) -> Plan:
        """Return a plan with bits for each layer's weights; see `methods.mixed_precision.choose_weight_bits`."""
        bits = choose_weight_bits(self.graph, plan, average_bits, self.method.weight_ranges, batches, on_batch)
        return replace(plan, weight_bits=bits)

    def round(
        self,
        plan: Plan,
        batches: Iterable[Batch],
        on_progress: Callable[[int], None] = lambda _: None,
        checkpoint: Path | None = None,
    ) -> Rounded:
        """Return the network rounded on the grids of a plan; see `methods.ptq.round_graph`."""
        return round_graph(self.graph, plan, self.method, batches, on_progress=on_progress, checkpoint=checkpoint)


def quantize(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    target: str | Target = "onnxruntime",
    calibrator: Calibrator | None = None,
    percentile: float = 99.99,
    method: PtqMethod | None = None,
    keep_float: Collection[str] = (),
    rounding_images: int = 256,
    average_bits: float | None = None,
    example: Any = None,
    on_progress: Progress = _silent,
) -> Quantized:
    """Return the INT8 form of a network for a target; labels are not needed.

    Sums of linear branches become one convolution, channels are scaled by a model of the rounding noise, one pass over
    the batches finds the ranges of the activations, and weights are rounded with error feedback. Images that set the
    network off are left out, where batches come in the same order each time; see `outliers` of what is returned.

    Args:
        model: any module that `torch.export` can follow, in float, or what `reparameterize` returned; it is not
            changed. All is computed on its device.
        batches: any iterable of tensors, tuples, dicts of keyword inputs or (input, label) pairs, such as a DataLoader;
            it is read several times.
        target: runtime that will serve the model, or its schemes from `resolve_target`.
        calibrator: "max", "percentile", "mse" or "entropy"; "loss-aware" takes for each tensor what one of them
            proposes, by what that does to the outputs on the first 64 images (`methods.loss_aware`). None takes that
            one where outputs are logits and the network has SiLU or GELU, or activations fewer than 8 bits. Else it
            takes "mse" (`methods.default_calibrator`).
        percentile: percentage of magnitudes that the percentile calibrator keeps.
        method: what is done beside finding ranges.
        keep_float: names of layers, operators or enclosing modules that stay in float; "first" and "last".
        rounding_images: images that the rounding of weights looks at, at most; 0 rounds to the nearest.
        average_bits: mixed precision: bits of a weight, averaged over all weights that are rounded, from 4 to those of
            the target. Each layer gets 4 bits or those of the target, whichever way changes the outputs least on the
            first 64 images (`methods.mixed_precision`); None gives all layers those of the target.
        example: inputs of the model, as `capture` takes them; the first batch by default.
        on_progress: see `Progress`.

    Raises:
        InputError: a network that can't be captured or is not float32, no batches, a name that is not known, or
            `average_bits` that no layers can hold to.

    Examples:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 1)).eval()
        >>> int8 = quantize(model, [torch.randn(8, 3, 16, 16)], target="onnxruntime")
        >>> [layer.name for layer in int8.layers if layer.precision.startswith("int")]
        ['0', '2']
    """
    schemes, method = served_here(target), method or PtqMethod()
    if average_bits is not None:
        check_average_bits(average_bits, schemes)
    batches = rereadable(batches)
    graph = captured(model, batches, example)
    with full_precision(device_of(graph)):
        calibrated = calibrate(
            graph,
            method,
            schemes,
            batches,
            keep_float,
            scaled_for=preparing_target(schemes, average_bits),
            on_progress=on_progress,
        )
        batches = calibrated.batches
        name, tell = calibrator or default_calibrator(graph, schemes), partial(on_progress, "choose ranges")
        plan = calibrated.plan(name, percentile=percentile, on_batch=tell)
        if average_bits is not None:
            plan = calibrated.with_average_bits(plan, average_bits, batches, partial(on_progress, "choose bits"))
        rounded = calibrated.round(plan, first_images(batches, rounding_images), partial(on_progress, "round"))
    return Quantized(rounded.graph, rounded.plan, outliers=calibrated.outliers)


def calibrate(
    graph: fx.GraphModule,
    method: PtqMethod,
    target: Target,
    batches: Iterable[Batch],
    keep_float: Collection[str] = (),
    *,
    scaled_for: Target | None = None,
    on_progress: Progress = _silent,
) -> Calibrated:
    """Prepare a network for its target and collect its histograms, again without outliers where there are any.

    Args:
        graph: from `capture`.
        method: how.
        target: the schemes.
        batches: that can be read several times.
        keep_float: layers that stay in float.
        scaled_for: the schemes that channels are scaled for; those of `target` by default.
        on_progress: see `Progress`.

    Raises:
        InputError: as `methods.ptq.prepare` and `collect`.
    """

    def once(batches: Iterable[Batch]) -> Calibrated:
        scale = partial(on_progress, "scale channels")
        prepared = prepare(graph, method, scaled_for or target, batches, keep_float, scale)
        return collect(prepared, batches, target, method, keep_float, partial(on_progress, "calibrate"))

    calibrated = once(batches)
    if not (outliers := calibrated.outliers):
        return calibrated
    if not come_in_order(batches):
        return replace(calibrated, outliers=())
    return replace(once(WithoutImages(batches, frozenset(outliers))), outliers=outliers)


def collect(
    prepared: fx.GraphModule,
    batches: Iterable[Batch],
    target: Target,
    method: PtqMethod,
    keep_float: Collection[str],
    on_batch: Callable[[int], None] = lambda _: None,
) -> Calibrated:
    """Return a prepared network with the histograms of one pass over the batches; outliers are named, not left out."""
    layout = find_layout(prepared, target, keep_float)
    histograms, outliers = collect_with_outliers(prepared, layout, batches, on_batch)
    is_free = captured_of(prepared).dynamic_batch  # else a batch can't get smaller
    return Calibrated(
        graph=prepared,
        layout=layout,
        histograms=histograms,
        batches=batches,
        target=target,
        method=method,
        outliers=outliers if is_free else (),
    )


def captured(model: nn.Module, batches: Iterable[Batch], example: Any = None) -> fx.GraphModule:
    """Return a network as a graph with its linear branches merged; one that is a captured graph already as it is.

    Raises:
        InputError: as `reparameterize`, or a network that is not float32.
    """
    require_float32(model)
    if isinstance(model, fx.GraphModule) and isinstance(model.meta.get("repquant"), Captured):
        return model
    return reparameterize(model, example_of(model, batches) if example is None else example)


def served_here(target: str | Target) -> Target:
    """Return the schemes of a runtime on this CPU, where a name was given."""
    if isinstance(target, Target):
        return target
    from repquant.runtimes.cpu import int8_support

    return resolve_target(target, fast_int8_dot=int8_support().safe)
