"""Class-free re-parameterization: a sum of linear paths from one tensor is one convolution.

Any network that trains with parallel linear branches (RepVGG, MobileOne, RepViT, FastViT, RepConv in detectors)
deploys as plain convolutions. The branches are found in the captured graph, whatever classes they were written with:
additions, subtractions, scale factors and shifts of convolutions and average poolings of one tensor, and the tensor
itself (Ding et al., "RepVGG", CVPR 2021, section 3.3; "Diverse Branch Block", CVPR 2021, for chains and pooling).
"""

import itertools
from collections import Counter
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from repquant.graph.affine import Affine, NotOneMapError, as_convolution, convolution_macs
from repquant.graph.branches import cut_out
from repquant.graph.copies import copy_graph
from repquant.graph.evaluation import evaluated
from repquant.graph.layers import make_layer
from repquant.graph.linear_paths import (
    Path,
    Refused,
    added,
    is_feature_map,
    is_scale_layer,
    paths_to,
    scales_or_shifts,
    terms_of,
)
from repquant.graph.names import place
from repquant.graph.noops import remove_unused

aten = torch.ops.aten

TOLERANCE = 1e-9


@dataclass(frozen=True, kw_only=True)
class Group:
    """One merged convolution: its name, the paths that it sums, the convolutions it stands for, its kernel (H, W)."""

    name: str
    paths: int
    convolutions: int
    kernel: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Convolutions on paths from one tensor that stay as they are, and why."""

    layers: tuple[str, ...]
    reason: str


@dataclass(frozen=True, kw_only=True)
class MergeReport:
    """What `merge` made of a graph; in `graph_module.meta["reparameterization"]`."""

    groups: tuple[Group, ...]
    refused: tuple[Refusal, ...]
    convolutions_before: int
    convolutions_after: int


@dataclass(frozen=True, kw_only=True, eq=False)
class _Term:
    """What a sum adds, and what it is a map of."""

    sign: int
    node: fx.Node
    paths: dict[fx.Node, Path]


@dataclass
class _Progress:
    groups: list[Group] = field(default_factory=list)
    refused: dict[tuple[str, ...], str] = field(default_factory=dict)
    left_alone: set[tuple[fx.Node, fx.Node]] = field(default_factory=set)
    branches: dict[str, fx.GraphModule] = field(default_factory=dict)


def merge(captured: fx.GraphModule) -> fx.GraphModule:
    """Return a captured graph in which each sum of linear paths from one tensor is one `nn.Conv2d`.

    Merged are at least two paths with a convolution among them, or one convolution with the scale factors, shifts and
    batch normalization behind it. A chain of convolutions is one only inside a sum, and nothing is merged that would
    cost more multiply-adds than its parts. Each group is compared with its parts in float64 on random input.

    A merged layer is named `<module>.reparam`, by the innermost module that holds all its convolutions; a group of one
    convolution keeps that one's name. The report is in `meta["reparameterization"]`. The input is not changed.
    """
    return merge_with_branches(captured)[0]


def merge_with_branches(captured: fx.GraphModule) -> tuple[fx.GraphModule, dict[str, fx.GraphModule]]:
    """Return what `merge` does, and what each merged layer was made of, by its name, for `graph.branches`.

    The branches take the tensor that the layer reads, and share nothing with the two networks.
    """
    graph_module = copy_graph(captured)
    progress = _Progress()
    before = len(_convolutions(graph_module))
    # What is merged may be a path of a larger sum, so look again until nothing is found.
    with torch.no_grad():
        while _merge_once(graph_module, progress):
            pass
    merged = fx.GraphModule(graph_module, graph_module.graph, class_name=type(captured).__name__).eval()
    merged.graph.lint()
    left = set(_convolutions(merged))
    merged.meta |= captured.meta
    merged.meta["reparameterization"] = MergeReport(
        groups=tuple(progress.groups),
        refused=tuple(
            Refusal(layers=layers, reason=reason) for layers, reason in progress.refused.items() if left >= set(layers)
        ),
        convolutions_before=before,
        convolutions_after=len(left),
    )
    return merged, {name: branches for name, branches in progress.branches.items() if name in left}


def _convolutions(graph_module: fx.GraphModule) -> list[str]:
    called = [str(node.target) for node in graph_module.graph.nodes if node.op == "call_module"]
    return [name for name in called if isinstance(graph_module.get_submodule(name), nn.Conv2d)]


def _merge_once(graph_module: fx.GraphModule, progress: _Progress) -> bool:
    """Go through the graph from its end, so that a sum comes before its terms; return whether something merged."""
    nodes = reversed(list(graph_module.graph.nodes))
    return sum(_merge_at(graph_module, node, progress) for node in nodes) > 0


def _merge_at(graph_module: fx.GraphModule, top: fx.Node, progress: _Progress) -> bool:
    """Merge, in place, paths that meet at a node; return whether there were any."""
    terms = _terms_at(graph_module, top)
    is_sum = len(terms) > 1
    for root in _shared_roots(terms) if is_sum else _nearest_root(terms, str(top.target)):
        if (top, root) in progress.left_alone:
            continue
        paths = [term.paths[root] for term in terms if root in term.paths]
        reasons = [path.reason for path in paths if isinstance(path, Refused)]
        layers = tuple(name for path in paths for name in path.layers)
        members = [term for term in terms if isinstance(term.paths.get(root), Affine)]
        merged = None
        if len(members) > is_sum and any(term.paths[root].layers for term in members):
            try:
                merged = _one_convolution(graph_module, root, members)
            except NotOneMapError as reason:
                reasons.append(str(reason))
        if reasons and layers:
            progress.refused.setdefault(layers, reasons[0])
        if merged is None:
            progress.left_alone.add((top, root))
            continue
        path, kernel = merged
        branches = cut_out(graph_module, root, [(term.sign, term.node) for term in members], progress.branches)
        name = _replace(graph_module, top, [term for term in terms if term not in members], path, kernel)
        progress.branches[name] = branches
        progress.groups.append(Group(name=name, paths=path.paths, convolutions=len(path.layers), kernel=path.taps))
        return True
    return False


def _terms_at(graph_module: fx.GraphModule, top: fx.Node) -> list[_Term]:
    """Return the terms of a sum, or a scaled or shifted node as its own only term; empty for any other node."""
    if not top.users or not is_feature_map(top):
        return []
    terms = _flattened(top)
    if not terms and (scales_or_shifts(top) or is_scale_layer(graph_module, top)):
        return [_Term(sign=1, node=top, paths=paths_to(graph_module, top, is_inside=False))]
    return [_Term(sign=sign, node=node, paths=paths_to(graph_module, node)) for sign, node in terms]


def _flattened(node: fx.Node) -> list[tuple[int, fx.Node]]:
    """Return the (sign, node) that a sum adds up, through the sums that only it uses."""
    flat: list[tuple[int, fx.Node]] = []
    for sign, term in terms_of(node):
        inner = _flattened(term) if len(term.users) == 1 else []
        flat += [(sign * inner_sign, inner_term) for inner_sign, inner_term in inner] or [(sign, term)]
    return flat


def _shared_roots(terms: list[_Term]) -> list[fx.Node]:
    """Return the tensors from which at least two terms come, those of most terms first, then the nearest."""
    counts = Counter(root for term in terms for root in term.paths)
    return [root for root, count in counts.most_common() if count > 1]


def _nearest_root(terms: list[_Term], name: str) -> list[fx.Node]:
    """Return the first tensor from which a convolution comes, but the layer `name` itself: no chain is merged."""
    return [root for term in terms for root, path in term.paths.items() if {*path.layers} - {name}][:1]


def _one_convolution(graph_module: fx.GraphModule, root: fx.Node, members: list[_Term]) -> tuple[Affine, Tensor]:
    """Return the sum of terms as one convolution with its kernel, compared with what the graph computes.

    Raises:
        NotOneMapError: the sum is none, costs more than its parts, or differs from them.
    """
    total = added([(term.sign, term.paths[root]) for term in members])
    if isinstance(total, Refused):
        raise NotOneMapError(total.reason)
    path = as_convolution(total)
    if convolution_macs(path) > path.macs:
        raise NotOneMapError(
            f"one convolution takes {convolution_macs(path):,} multiply-adds of an image, its parts {path.macs:,}"
        )
    kernel = path.weight()
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, *root.meta["val"].shape[1:], dtype=torch.float64, generator=generator).to(kernel.device)
    values = {root: image}
    expected = torch.stack([term.sign * evaluated(graph_module, term.node, values) for term in members]).sum(0)
    actual = F.conv2d(image, kernel, path.bias, path.stride, path.front, path.dilation, path.groups)
    difference = float((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-300))
    if not difference <= TOLERANCE:
        raise NotOneMapError(f"the merged convolution differs from its parts by {difference:.1e} of the largest output")
    return path, kernel


def _replace(graph_module: fx.GraphModule, top: fx.Node, rest: list[_Term], path: Affine, kernel: Tensor) -> str:
    """Put the convolution, and the sum of it with the terms that it leaves, in the place of a node; return its name."""
    graph, dtype = graph_module.graph, top.meta["val"].dtype
    layer = make_layer(
        nn.Conv2d,
        kernel.to(dtype),
        path.bias.to(dtype),
        stride=path.stride,
        padding=path.front,
        dilation=path.dilation,
        groups=path.groups,
    )
    name = _named(graph_module, path.layers, layer)
    with graph.inserting_before(top):
        new = graph.call_module(name, (path.root,))
        new.meta = dict(top.meta)
        for term in rest:
            new = graph.call_function(aten.add.Tensor if term.sign == 1 else aten.sub.Tensor, (new, term.node))
            new.meta = dict(top.meta)
    top.replace_all_uses_with(new)
    remove_unused(graph)
    return name


def _named(graph_module: fx.GraphModule, layers: tuple[str, ...], layer: nn.Module) -> str:
    if len(set(layers)) == 1:
        old = graph_module.get_submodule(layers[0])
        for child, module in old.named_children():
            layer.add_module(child, module)
        graph_module.set_submodule(layers[0], layer)
        return layers[0]
    names = [layer_name.split(".") for layer_name in layers]
    shared = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*names, strict=False))
    enclosing = [parts[0] for parts in shared]
    return place(graph_module, ".".join([*enclosing, "reparam"]), layer)
