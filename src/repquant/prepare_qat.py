"""From a float network to one that trains with rounding in the loop."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import nn

from repquant.choices import Calibrator, WeightScales
from repquant.errors import InputError
from repquant.graph.batches import example_of, rereadable
from repquant.graph.branches import stay_one_convolution
from repquant.graph.capture import capture
from repquant.graph.devices import require_float32
from repquant.graph.linear import merge_with_branches
from repquant.graph.run import Batch
from repquant.methods.method import PtqMethod
from repquant.methods.rounded import Rounded
from repquant.qat.kernels import MergedKernel
from repquant.qat.network import make_trainable
from repquant.qat.quantizers import WEIGHT_SCALES
from repquant.qat.trainable import Trainable
from repquant.quantize import Progress, quantize
from repquant.targets.target import Target

ActivationScales = Literal["learned", "fixed"]


@dataclass(frozen=True, kw_only=True)
class QatOptions:
    """What trains beside biases and operators that stay in float.

    Attributes:
        kernels: "branches" trains those of the network through the one convolution that they are equal to, which is
            what is rounded; "deploy" trains its kernel itself. Layers without branches have their kernel either way.
        weight_scales: "fixed" as at the start, "learned" (LSQ), or the "max" of the kernel at each step.
        activation_scales: "learned" (LSQ) or "fixed"; those of inputs of the network stay as they are.

    Raises:
        InputError: a name that is not known.
    """

    kernels: Literal["branches", "deploy"] = "branches"
    weight_scales: WeightScales = "fixed"
    activation_scales: ActivationScales = "learned"

    def __post_init__(self) -> None:
        for what, given, allowed in (
            ("kernels", self.kernels, ("branches", "deploy")),
            ("weight_scales", self.weight_scales, WEIGHT_SCALES),
            ("activation_scales", self.activation_scales, get_args(ActivationScales)),
        ):
            if given not in allowed:
                raise InputError(f"{what} {given!r} was given; allowed are {', '.join(allowed)}")


def prepare_qat(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    target: str | Target = "onnxruntime",
    options: QatOptions | None = None,
    calibrator: Calibrator | None = None,
    percentile: float = 99.99,
    method: PtqMethod | None = None,
    keep_float: Collection[str] = (),
    rounding_images: int = 256,
    example: Any = None,
    on_progress: Progress = lambda _step, _done: None,
) -> Trainable:
    """Return a network that trains with rounding in the loop, from where `quantize` ends, for a loop of your own.

    It takes and returns what the model does, and computes what the target will, but for the order of sums. Batch
    normalization is folded: statistics are frozen. Branches that were merged train through the merged kernel, wherever
    they stay one convolution whatever their parameters are; give the model as it was trained for that, since what
    `reparameterize` returned has none.

    Args:
        model: as for `quantize`; it is not changed.
        batches: as for `quantize`; labels are not needed.
        target: as for `quantize`.
        options: what trains.
        calibrator: as for `quantize`: of the ranges that training begins with.
        percentile: as for `quantize`.
        method: as for `quantize`, with weights rounded by feedback or to the nearest.
        keep_float: as for `quantize`; these layers train in float.
        rounding_images: as for `quantize`.
        example: as for `quantize`.
        on_progress: as for `quantize`.

    Raises:
        InputError: as `quantize`; learned rounding, or a shortcut that training has no form for.

    Examples:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 1)).eval()
        >>> images = torch.randn(8, 3, 16, 16)
        >>> network = prepare_qat(model, [images], target="tensorrt")
        >>> optimizer = torch.optim.AdamW(network.parameter_groups(learning_rate=0.01))
        >>> network.distillation_loss(network(images), images).backward()
        >>> optimizer.step()
    """
    options, method = options or QatOptions(), method or PtqMethod()
    if method.rounding == "learned":
        raise InputError("method.rounding 'learned' was given: training learns it itself; give feedback or nearest")
    if method.identity not in ("fused", "residual"):
        raise InputError(
            f"method.identity {method.identity!r} was given; training keeps identity branches in the kernel or adds "
            "them: give fused or residual"
        )
    require_float32(model)
    batches = rereadable(batches)
    graph, branches = merge_with_branches(capture(model, example_of(model, batches) if example is None else example))
    int8 = quantize(
        graph,
        batches,
        target=target,
        calibrator=calibrator,
        percentile=percentile,
        method=method,
        keep_float=keep_float,
        rounding_images=rounding_images,
        on_progress=on_progress,
    )
    sources = {
        name: MergedKernel(branches[name], int8.float_graph.get_submodule(name))
        for name in (int8.plan.layout.layers if options.kernels == "branches" else ())
        if name in branches and stay_one_convolution(branches[name], graph.get_submodule(name))
    }
    network = make_trainable(
        int8.float_graph,
        int8.plan,
        sources=sources,
        weight_scales=options.weight_scales,
        learned_activations=options.activation_scales == "learned",
    )
    return Trainable(network, Rounded(int8.float_graph, int8.plan), graph)
