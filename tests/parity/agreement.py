"""A network from capture to file, in the simulation and in both CPU runtimes, and how far their outputs agree."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from repquant.export.onnx import export_graph
from repquant.graph.interface import input_names, output_names
from repquant.graph.layout import Layout, find_layout
from repquant.graph.plan import make_plan
from repquant.graph.run import inputs_of, run
from repquant.methods.calibrate import activation_ranges, collect_histograms
from repquant.runtimes.cpu import int8_support
from repquant.runtimes.executed import Executed
from repquant.runtimes.onnxruntime import OnnxRuntime
from repquant.runtimes.openvino import OpenVinoRuntime
from repquant.simulation.network import simulate
from repquant.targets.target import Target, resolve_target

ENGINES = {"onnxruntime": OnnxRuntime, "openvino": OpenVinoRuntime}
WEIGHT_BITS = 8 if int8_support().safe else 7  # OpenVINO saturates with 8 bits on CPUs without VNNI
Outputs = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far two outputs agree.

    Attributes:
        equal: share of the values that differ by less than a thousandth of a step: all integers in front of them are
            equal, as one integer more or less shifts an output by a weight.
        steps: the largest difference; a step is 1/255 of the range of the output.
    """

    equal: float
    steps: float


@dataclass(frozen=True, kw_only=True)
class Deployed:
    """A quantized network: outputs by name of the float network, the simulation and the runtimes."""

    layout: Layout
    reference: Outputs
    simulated: Outputs
    engines: Mapping[str, Outputs]
    executed: Mapping[str, tuple[Executed, ...]]

    def agreement(self, engine: str, output: str) -> Agreement:
        expected, given = self.simulated[output], self.engines[engine][output]
        assert given.shape == expected.shape
        differences = np.abs(given - expected) / ((expected.max() - expected.min()) / 255)
        return Agreement(equal=float((differences < 1e-3).mean()), steps=float(differences.max()))

    def sqnr_db(self, output: str) -> float:
        """Power of the float output over that of the simulation's difference to it, in decibels."""
        noise = self.simulated[output] - self.reference[output]
        return float(10 * np.log10(np.square(self.reference[output]).sum() / np.square(noise).sum()))


def deploy(
    graph: fx.GraphModule, batch: Any, target: Target | str, path: Path, keep_float: Iterable[str] = ()
) -> Deployed:
    """Calibrate, simulate and export a captured network, and run it in both runtimes on the same batch."""
    if isinstance(target, str):
        target = resolve_target(target, weight_bits=WEIGHT_BITS)
    layout = find_layout(graph, target, tuple(keep_float))
    ranges = activation_ranges("mse", collect_histograms(graph, layout, [batch]), target)
    simulated = simulate(graph, make_plan(layout, ranges, target))
    export_graph(simulated, path, target)
    inputs = dict(zip(input_names(graph), (x.numpy() for x in inputs_of(graph, batch)), strict=True))
    engines = {name: engine(path, threads=1) for name, engine in ENGINES.items()}
    return Deployed(
        layout=layout,
        reference=named_outputs(graph, batch),
        simulated=named_outputs(simulated, batch, output_names(graph)),
        engines={name: engine.run(inputs) for name, engine in engines.items()},
        executed={name: engine.executed() for name, engine in engines.items()},
    )


@torch.inference_mode()
def named_outputs(graph: fx.GraphModule, batch: Any, names: list[str] | None = None) -> dict[str, NDArray[Any]]:
    outputs: tuple[Tensor, ...] = run(graph, batch)
    return {name: value.numpy() for name, value in zip(names or output_names(graph), outputs, strict=True)}
