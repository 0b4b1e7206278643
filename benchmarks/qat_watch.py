"""What happens inside a network in quantization-aware training, layer by layer, step by step."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, fx, nn

from repquant.models.blocks import RepVGGBlock
from repquant.numerics.affine import to_integers
from repquant.numerics.outliers import range_over_sigma
from repquant.qat.layer import QatLayer
from repquant.qat.network import qat_layers
from repquant.repvgg.kernels import EquivalentKernel, FoldedKernel

FLIP_MOMENTUM = 0.01
OSCILLATING = 0.005
"""Of the moving average of reversals. Both are those of Nagel et al., "Overcoming oscillations in quantization-aware
training", ICML 2022: above it are the weights whose integer turned back once in the last 69 steps, or more often."""
NEARLY_DEAD = 1e-3
"""Variance of a channel, a hundred times the eps of batch normalization."""


OVER_TIME: dict[str, Callable[[list[float]], float]] = {
    "oscillating": fmean,
    "moved": fmean,
    "step": fmean,
    "mean_drift": max,
    "variance_drift": max,
    "largest_t": max,
}
"""What is kept of every reading, as one number of all layers."""

Reading = dict[str, list[float | None]]
"""Each quantity with one value a layer; None where a layer has no such quantity."""


class Watch:
    """Call `after_backward` and `after_step` in each step, and `read` for the means since the last reading."""

    def __init__(self, network: fx.GraphModule) -> None:
        self.traces = {name: Trace(layer) for name, layer in qat_layers(network).items()}

    def after_backward(self) -> None:
        for trace in self.traces.values():
            trace.after_backward()

    def after_step(self, rate: float) -> None:
        for trace in self.traces.values():
            trace.after_step(rate)

    def read(self) -> Reading:
        parts = [trace.read() for trace in self.traces.values()]
        names = dict.fromkeys(name for part in parts for name in part)
        return {name: [rounded(part.get(name)) for part in parts] for name in names}


class Trace:
    """One layer."""

    def __init__(self, layer: QatLayer) -> None:
        self.layer = layer
        self.sums: dict[str, float] = defaultdict(float)
        self.counts: dict[str, int] = defaultdict(int)
        self.gradient: Tensor | None = None
        self.gains: dict[str, float] = {}
        self.kernel, self.integers = self._kernel(), self._integers()
        self.start = self.integers
        self.direction = torch.zeros_like(self.integers)
        self.reversals = torch.zeros_like(self.kernel)
        layer.weight.register_forward_hook(self._keep_gradient)
        if isinstance(layer.source, FoldedKernel):
            bn = layer.source.bn
            self.first_mean, self.first_variance = (values.clone() for values in statistics(bn))
            bn.register_forward_pre_hook(self._compare_batch)

    def after_backward(self) -> None:
        assert self.gradient is not None
        self._add("gradient", self.gradient.norm())
        if isinstance(self.layer.source, EquivalentKernel):
            assert isinstance(self.layer.source.block, RepVGGBlock)
            for name, norm in branch_gradients(self.layer.source.block).items():
                self._add(f"gradient {name}", norm)

    def after_step(self, rate: float) -> None:
        kernel, integers = self._kernel(), self._integers()
        change = kernel - self.kernel
        if not self.gains:
            assert self.gradient is not None
            self.gains = gains(change, self.gradient, rate)
        self._add("step", change.norm() / self.kernel.norm())
        turn = (integers - self.integers).sign()
        self.reversals.lerp_((turn * self.direction < 0).float(), FLIP_MOMENTUM)
        self.direction = torch.where(turn != 0, turn, self.direction)
        self.kernel, self.integers = kernel, integers

    def read(self) -> dict[str, float]:
        values = {
            "range": float(self.kernel.abs().flatten(1).amax(1).mean()),
            "range_over_sigma": float(range_over_sigma(self.kernel).median()),
            "activation_scale": float(self.layer.input.grid().scale),
            "oscillating": float((self.reversals > OSCILLATING).float().mean()),
            "moved": float((self.integers != self.start).float().mean()),
        }
        values |= {name: total / self.counts[name] for name, total in self.sums.items()}
        values |= self.gains
        self.sums.clear()
        self.counts.clear()
        if isinstance(self.layer.source, FoldedKernel):
            values |= self._drift(self.layer.source)
        return values

    def _drift(self, source: FoldedKernel) -> dict[str, float]:
        mean, variance = statistics(source.bn)
        spread = self.first_variance + source.bn.eps
        return {
            "mean_drift": float(((mean - self.first_mean).abs() / spread.sqrt()).mean()),
            "variance_drift": float(((variance - self.first_variance).abs() / spread).mean()),
            "largest_t": float(source.scale_shift()[0].detach().abs().max()),
            "smallest_variance": float(variance.min()),
            "nearly_dead": float((variance < NEARLY_DEAD).float().mean()),
        }

    def _compare_batch(self, bn: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Add how far the variance of a batch is from the running one."""
        assert isinstance(bn, nn.BatchNorm2d)
        if bn.training:
            _, running = statistics(bn)
            batch = inputs[0].detach().var((0, 2, 3))
            self._add("batch_gap", ((batch - running).abs() / (running + bn.eps)).mean())

    def _keep_gradient(self, _module: nn.Module, _inputs: object, rounded_kernel: Tensor) -> None:
        if rounded_kernel.requires_grad:
            rounded_kernel.register_hook(self._keeper())

    def _keeper(self) -> Callable[[Tensor], None]:
        def keep(gradient: Tensor) -> None:
            self.gradient = gradient.detach()

        return keep

    def _kernel(self) -> Tensor:
        return self.layer.kernel_and_bias()[0].detach().clone()

    @torch.no_grad()
    def _integers(self) -> Tensor:
        return to_integers(self.layer.kernel_and_bias()[0], self.layer.weight_grid()).to(torch.int16)

    def _add(self, name: str, value: Tensor | float) -> None:
        self.sums[name] += float(value)
        self.counts[name] += 1


def summary(readings: Sequence[Reading]) -> dict[str, Any]:
    """Return the curves of `OVER_TIME`, and layer by layer the first reading, the last one, and the mean of all after
    the first."""
    names = dict.fromkeys(name for reading in readings[1:] for name in reading)
    return {
        "curves": {
            name: [
                rounded(combine(known)) if (known := [v for v in reading.get(name, ()) if v is not None]) else None
                for reading in readings
            ]
            for name, combine in OVER_TIME.items()
            if name in names
        },
        "start": readings[0],
        "mean": {name: mean_of([reading[name] for reading in readings[1:] if name in reading]) for name in names},
        "end": readings[-1],
    }


def mean_of(readings: Sequence[list[float | None]]) -> list[float | None]:
    columns = [[value for value in column if value is not None] for column in zip(*readings, strict=True)]
    return [rounded(fmean(known)) if known else None for known in columns]


def gains(change: Tensor, gradient: Tensor, rate: float) -> dict[str, float]:
    """Return how many times `rate` x gradient the first step of SGD was: everywhere, at the center, around it."""
    if change.ndim != 4 or change.shape[-1] != 3:
        return {"gain": float(change.norm() / (rate * gradient.norm()))}
    center = torch.zeros_like(change, dtype=torch.bool)
    center[:, :, 1, 1] = True
    places = {"gain": torch.ones_like(center), "gain_center": center, "gain_around": ~center}
    return {name: float(change[place].norm() / (rate * gradient[place].norm())) for name, place in places.items()}


def branch_gradients(block: RepVGGBlock) -> dict[str, float]:
    """Return the norms of the gradients of a block's parameters, by kind."""
    branches = (block.conv3x3, block.conv1x1)
    norms = [block.identity] if block.identity is not None else []
    kinds: dict[str, list[Any]] = {
        "3x3 kernel": [block.conv3x3.conv.weight],
        "1x1 kernel": [block.conv1x1.conv.weight],
        "gammas": [branch.bn.weight for branch in branches],
        "identity gamma": [bn.weight for bn in norms],
        "betas": [*(branch.bn.bias for branch in branches), *(bn.bias for bn in norms)],
    }
    return {
        kind: float(torch.stack([parameter.grad.norm() for parameter in parameters]).norm())
        for kind, parameters in kinds.items()
        if parameters
    }


def statistics(bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    assert bn.running_mean is not None
    assert bn.running_var is not None
    return bn.running_mean, bn.running_var


def rounded(value: float | None) -> float | None:
    """Keep three digits."""
    return None if value is None else float(f"{value:.3g}")
