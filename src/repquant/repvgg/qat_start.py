"""Where quantization-aware training starts: from the best that post-training quantization finds, in every method.

Channels are scaled, ranges read and weights rounded on the deploy model; what that changed is moved into the parameters
that will train.
"""

import copy
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, fx

from repquant.errors import InputError
from repquant.graph.capture import capture
from repquant.graph.layout import find_layout
from repquant.graph.plan import Plan, make_plan
from repquant.methods.calibrate import activation_ranges, collect_histograms
from repquant.methods.feedback import round_weights
from repquant.methods.ptq import PtqMethod
from repquant.methods.weight_grids import find_weight_grids
from repquant.models.network import RepVGG
from repquant.models.reparam import reparameterize
from repquant.models.shortcut import split_identity
from repquant.qat.kernels import KernelSource
from repquant.quant.equalize import apply_scales, find_scales
from repquant.repvgg.branches import absorb, is_residual, normalize_branches, scale_branches, training_blocks
from repquant.repvgg.insert_bn import NormalizedConv2d, insert_bn, measure_outputs, without_statistics
from repquant.repvgg.kernels import EquivalentKernel, FoldedKernel
from repquant.simulation.network import quantized_layers
from repquant.targets.target import Target

_ANY_SIZE = 64
"""Of the image that a network is captured with: the graph of a RepVGG is the same for every size."""

Batches = Callable[[], Iterable[Tensor]]
"""Gives the same images (N, 3, H, W) each time that it is called."""


@dataclass(frozen=True, kw_only=True)
class StartOptions:
    """How the start is found.

    Attributes:
        method: of quantization-aware training: "plain", "inserted-bn" or "equivalent-kernel".
        ptq: equalization; ranges of weights; rounding by "feedback" or "nearest"; identities stay in the kernels
            ("fused") or are additions beside them ("residual").
        calibrator: of the activation ranges.
        percentile: of the calibrator of that name.

    Raises:
        InputError: other shortcuts or learned rounding, which training has no form for.
    """

    method: str
    ptq: PtqMethod
    calibrator: str = "mse"
    percentile: float = 99.99

    def __post_init__(self) -> None:
        if self.ptq.identity not in ("fused", "residual"):
            raise InputError(
                f"identity {self.ptq.identity!r} was given; training keeps identity branches in the kernel or adds "
                "them: pass --identity fused or residual"
            )
        if self.ptq.identity == "residual" and self.method == "inserted-bn":
            raise InputError("--method inserted-bn folds whole kernels; pass --identity fused with it")
        if self.ptq.rounding == "learned":
            raise InputError(
                "learned rounding was given: training learns it itself; pass --rounding feedback or nearest"
            )


@dataclass(frozen=True, kw_only=True)
class QatStart:
    """What `qat.network.prepare_qat` makes the network from that trains.

    Attributes:
        deploy: the float deploy model.
        plan: where it is rounded, and the grids to begin with.
        sources: layer name -> where its kernel comes from; other layers train their own.
    """

    deploy: RepVGG
    plan: Plan
    sources: Mapping[str, KernelSource]

    @cached_property
    def graph(self) -> fx.GraphModule:
        """The deploy model, captured; by each process of a training for itself, for graphs can't be sent."""
        return captured(self.deploy)


def start_qat(
    model: RepVGG,
    options: StartOptions,
    target: Target,
    calibration: Batches,
    rounding: Batches,
    keep_float: Collection[str] = (),
    inserted: RepVGG | None = None,
) -> QatStart:
    """Return kernels and grids to train from.

    Args:
        model: training form; deploy form will do for "plain" and "inserted-bn".
        options: how.
        target: the schemes.
        calibration: images that ranges and scales, and statistics of inserted normalizations, come from.
        rounding: images that weights are rounded for; with none they are rounded to the nearest.
        keep_float: layers that stay in float.
        inserted: for "inserted-bn", the deploy model with its normalizations; None measures them.

    Raises:
        InputError: a deploy model for "equivalent-kernel".
    """
    require_branches(model, options.method)
    deploy = reparameterize(model)
    method = options.ptq
    if method.equalization != "none":
        scales = find_scales(deploy, method.equalization, calibration(), target, method.shortcut)
        deploy, model = apply_scales(deploy, *scales), scale_branches(model, *scales)
    deploy = _set_apart(deploy, method)
    graph = captured(deploy)
    layout = find_layout(graph, target, keep_float)
    histograms = collect_histograms(graph, layout, calibration())
    ranges = activation_ranges(options.calibrator, histograms, target, percentile=options.percentile)
    plan = make_plan(layout, ranges, target)
    plan = replace(plan, weight_grids=find_weight_grids(graph, method.weight_ranges, plan))
    if method.rounding == "feedback" and (parts := list(rounding())):
        rounded = round_weights(graph, plan, parts)
        deploy, plan = with_parameters_of(deploy, rounded.graph), rounded.plan
    if options.method == "inserted-bn":
        inserted = inserted or insert_bn(deploy, measure_outputs(deploy, calibration()))
    return _start(model, deploy, plan, options.method, inserted)


def bare_start(model: RepVGG, options: StartOptions, target: Target, keep_float: Collection[str] = ()) -> QatStart:
    """Return a start with the structure alone, for a network whose parameters and grids come from a checkpoint."""
    require_branches(model, options.method)
    deploy = _set_apart(reparameterize(model), options.ptq)
    layout = find_layout(captured(deploy), target, keep_float)
    plan = make_plan(layout, dict.fromkeys(layout.tensors, (0.0, 1.0)), target)
    inserted = without_statistics(deploy) if options.method == "inserted-bn" else None
    return _start(model, deploy, plan, options.method, inserted)


def captured(deploy: RepVGG) -> fx.GraphModule:
    """Return the graph of a RepVGG in deploy form, for images of any size."""
    return capture(deploy, torch.zeros(2, 3, _ANY_SIZE, _ANY_SIZE))


@torch.no_grad()
def with_parameters_of(deploy: RepVGG, graph: fx.GraphModule) -> RepVGG:
    """Return a copy of a deploy model with the parameters of a captured network of the same layers."""
    changed = copy.deepcopy(deploy)
    changed.load_state_dict(graph.state_dict())
    return changed


@torch.no_grad()
def rounded_deploy(deploy: RepVGG, graph: fx.GraphModule, simulated: fx.GraphModule) -> RepVGG:
    """Return a float deploy model with the kernels and biases that the integers of a simulated network stand for.

    Args:
        deploy: for its structure; it is not changed.
        graph: captured from a network of this structure: the parameters of layers that are not rounded.
        simulated: `graph` in integers.
    """
    rounded = with_parameters_of(deploy, graph)
    for name, layer in quantized_layers(simulated).items():
        rounded.get_parameter(f"{name}.weight").copy_(layer.integers.float_weight())
        bias = layer.integers.float_bias()
        if bias is not None:
            rounded.get_parameter(f"{name}.bias").copy_(bias)
    return rounded


def require_branches(model: RepVGG, method: str) -> None:
    """Refuse a model without branches for the method that trains them.

    Raises:
        InputError: there are none.
    """
    if method == "equivalent-kernel" and not training_blocks(model):
        raise InputError(
            "--method equivalent-kernel trains the branches that a block's kernel is made of, and this checkpoint is "
            "in deploy form: its branches are fused and can't be had back. Give the checkpoint in training form, or "
            "pass --method plain"
        )


def _set_apart(deploy: RepVGG, method: PtqMethod) -> RepVGG:
    return deploy if method.identity == "fused" else split_identity(deploy, "residual")


def _start(model: RepVGG, deploy: RepVGG, plan: Plan, method: str, inserted: RepVGG | None) -> QatStart:
    sources = _sources(model, deploy, method, inserted)
    rounded = {name: source for name, source in sources.items() if name in plan.layout.layers}
    return QatStart(deploy=deploy, plan=plan, sources=rounded)


def _sources(model: RepVGG, deploy: RepVGG, method: str, inserted: RepVGG | None) -> dict[str, KernelSource]:
    if method == "equivalent-kernel":
        branches = normalize_branches(absorb(model, deploy))
        return {
            f"{name}.conv": EquivalentKernel(block, is_residual(deploy, name))
            for name, block in training_blocks(branches).items()
        }
    if inserted is not None:
        return {
            name: FoldedKernel(layer.conv, layer.bn)
            for name, layer in inserted.named_modules()
            if isinstance(layer, NormalizedConv2d)
        }
    return {}
