"""Where quantization-aware training starts: from the best that post-training quantization finds, in every method.

Channels are scaled, ranges read and weights rounded on the deploy model; what that changed is moved into the parameters
that will train.
"""

import copy
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, fx, nn

from repquant.choices import Calibrator
from repquant.errors import InputError
from repquant.graph.capture import capture
from repquant.graph.channels import apply_scales
from repquant.graph.layout import find_layout
from repquant.graph.plan import Plan, make_plan
from repquant.methods.calibrate import collect_histograms, find_ranges
from repquant.methods.default_calibrator import default_calibrator
from repquant.methods.equalize import find_scales
from repquant.methods.feedback import round_weights
from repquant.methods.identity import identity_layers, split_identity
from repquant.methods.method import PtqMethod
from repquant.methods.weight_grids import find_weight_grids
from repquant.models.fuse import identity_kernel
from repquant.models.network import RepVGG
from repquant.models.reparam import reparameterize
from repquant.qat.kernels import KernelSource
from repquant.repvgg.branches import absorb, normalize_branches, scale_branches, training_blocks
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
        calibrator: of the activation ranges; None for that of `methods.default_calibrator`.
        percentile: of the calibrator of that name.

    Raises:
        InputError: other shortcuts or learned rounding, which training has no form for.
    """

    method: str
    ptq: PtqMethod
    calibrator: Calibrator | None = None
    percentile: float = 99.99

    def __post_init__(self) -> None:
        if self.ptq.identity not in ("fused", "residual"):
            raise InputError(
                f"identity {self.ptq.identity!r} was given; training keeps identity branches in the kernel or adds "
                'them: pass `identity="fused"` or "residual"'
            )
        if self.ptq.identity == "residual" and self.method == "inserted-bn":
            raise InputError('`method="inserted-bn"` folds whole kernels; pass `identity="fused"` with it')
        if self.ptq.rounding == "learned":
            raise InputError(
                'learned rounding was given: training learns it itself; pass `rounding="feedback"` or "nearest"'
            )


@dataclass(frozen=True, kw_only=True)
class QatStart:
    """What `qat.network.make_trainable` makes the network from that trains.

    Attributes:
        deploy: the float deploy model.
        plan: where it is rounded, and the grids to begin with.
        sources: layer name -> where its kernel comes from; other layers train their own.
        residuals: convolutions beside which `graph` adds the identity, in place of their kernels in `deploy`.
    """

    deploy: RepVGG
    plan: Plan
    sources: Mapping[str, KernelSource]
    residuals: Collection[str]

    @cached_property
    def graph(self) -> fx.GraphModule:
        """The deploy model, captured; by each process of a training for itself, for graphs can't be sent."""
        return _set_apart(captured(self.deploy), self.residuals, self.plan.target)


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
    graph, method = captured(deploy), options.ptq
    if method.equalization != "none":
        layout = find_layout(graph, target, keep_float)
        scales = find_scales(graph, method.equalization, calibration(), target, layout, method.shortcut)
        graph, model = apply_scales(graph, *scales), scale_branches(model, *scales)
        deploy = with_parameters_of(deploy, graph)
    residuals = _residuals(graph, method, keep_float)
    graph = _set_apart(graph, residuals, target)
    layout = find_layout(graph, target, keep_float)
    histograms = collect_histograms(graph, layout, calibration())
    name = options.calibrator or default_calibrator(graph, target)
    ranges = find_ranges(name, graph, layout, histograms, target, calibration(), percentile=options.percentile)
    plan = make_plan(layout, ranges, target)
    plan = replace(plan, weight_grids=find_weight_grids(graph, method.weight_ranges, plan))
    if method.rounding == "feedback" and next(iter(rounding()), None) is not None:
        rounded = round_weights(graph, plan, rounding())
        deploy, plan = with_parameters_of(deploy, rounded.graph, residuals), rounded.plan
    if options.method == "inserted-bn":
        inserted = inserted or insert_bn(deploy, measure_outputs(deploy, calibration()))
    return _start(model, deploy, plan, options.method, inserted, residuals)


def bare_start(model: RepVGG, options: StartOptions, target: Target, keep_float: Collection[str] = ()) -> QatStart:
    """Return a start with the structure alone, for a network whose parameters and grids come from a checkpoint."""
    require_branches(model, options.method)
    deploy = reparameterize(model)
    graph = captured(deploy)
    residuals = _residuals(graph, options.ptq, keep_float)
    layout = find_layout(_set_apart(graph, residuals, target), target, keep_float)
    plan = make_plan(layout, dict.fromkeys(layout.tensors, (0.0, 1.0)), target)
    inserted = without_statistics(deploy) if options.method == "inserted-bn" else None
    return _start(model, deploy, plan, options.method, inserted, residuals)


def captured(deploy: RepVGG) -> fx.GraphModule:
    """Return the graph of a RepVGG in deploy form, for images of any size."""
    return capture(deploy, torch.zeros(2, 3, _ANY_SIZE, _ANY_SIZE))


@torch.no_grad()
def with_parameters_of(deploy: RepVGG, graph: fx.GraphModule, residuals: Collection[str] = ()) -> RepVGG:
    """Return a copy of a deploy model with the parameters of a captured network of the same layers.

    The identities that the network adds beside the convolutions `residuals` go into their kernels.
    """
    changed = copy.deepcopy(deploy)
    changed.load_state_dict(graph.state_dict())
    _merge(changed, residuals)
    return changed


@torch.no_grad()
def rounded_deploy(start: QatStart, graph: fx.GraphModule, simulated: fx.GraphModule) -> RepVGG:
    """Return a float deploy model with the kernels and biases that the integers of a simulated network stand for.

    Args:
        start: what the training began with.
        graph: trained; the parameters of layers that are not rounded.
        simulated: `graph` in integers.
    """
    rounded = with_parameters_of(start.deploy, graph)
    for name, layer in quantized_layers(simulated).items():
        rounded.get_parameter(f"{name}.weight").copy_(layer.integers.float_weight())
        bias = layer.integers.float_bias()
        if bias is not None:
            rounded.get_parameter(f"{name}.bias").copy_(bias)
    _merge(rounded, start.residuals)
    return rounded


def require_branches(model: RepVGG, method: str) -> None:
    """Refuse a model without branches for the method that trains them.

    Raises:
        InputError: there are none.
    """
    if method == "equivalent-kernel" and not training_blocks(model):
        raise InputError(
            '`method="equivalent-kernel"` trains the branches that the kernel of a block is made of, and this '
            "checkpoint is in deploy form: its branches are fused and can't be had back. Give one in training form, "
            'or pass `method="plain"`'
        )


def _residuals(graph: fx.GraphModule, method: PtqMethod, keep_float: Collection[str]) -> list[str]:
    return [] if method.identity == "fused" else identity_layers(graph, keep_float)


def _set_apart(graph: fx.GraphModule, residuals: Collection[str], target: Target) -> fx.GraphModule:
    return split_identity(graph, "residual", target.weight, residuals)


def _merge(deploy: RepVGG, residuals: Collection[str]) -> None:
    for name in residuals:
        layer = deploy.get_submodule(name)
        assert isinstance(layer, nn.Conv2d)
        kernel = layer.weight
        kernel += identity_kernel(len(kernel), layer.groups, kernel.dtype, kernel.device)


def _start(
    model: RepVGG, deploy: RepVGG, plan: Plan, method: str, inserted: RepVGG | None, residuals: Collection[str]
) -> QatStart:
    sources = _sources(model, deploy, method, inserted, residuals)
    rounded = {name: source for name, source in sources.items() if name in plan.layout.layers}
    return QatStart(deploy=deploy, plan=plan, sources=rounded, residuals=residuals)


def _sources(
    model: RepVGG, deploy: RepVGG, method: str, inserted: RepVGG | None, residuals: Collection[str]
) -> dict[str, KernelSource]:
    if method == "equivalent-kernel":
        branches = normalize_branches(absorb(model, deploy))
        kernels = {f"{name}.conv": block for name, block in training_blocks(branches).items()}
        return {name: EquivalentKernel(block, name in residuals) for name, block in kernels.items()}
    if inserted is not None:
        return {
            name: FoldedKernel(layer.conv, layer.bn)
            for name, layer in inserted.named_modules()
            if isinstance(layer, NormalizedConv2d)
        }
    return {}
