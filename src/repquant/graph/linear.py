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
from repquant.graph.copies import copy_graph
from repquant.graph.evaluation import evaluated
from repquant.graph.layers import make_layer
from repquant.graph.linear_paths import Path, Refused, added, is_feature_map, paths_to, scales_or_shifts, terms_of
from repquant.graph.names import place
from repquant.graph.noops import remove_unused

aten = torch.ops.aten

TOLERANCE = 1e-9
Term = tuple[int, fx.Node]


@dataclass(frozen=True, kw_only=True)
class Group:
    """One merged convolution: its name, the paths that it sums, the convolutions it stands for, its kernel (H, W)."""

    name: str
    paths: int
    convolutions: int
    kernel: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Paths from one tensor that stay as they are: the name their convolution would have, and why."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class MergeReport:
    """What `merge` made of a graph; in `graph_module.meta["reparameterization"]`."""

    groups: tuple[Group, ...]
    refused: tuple[Refusal, ...]
    convolutions_before: int
    convolutions_after: int


@dataclass
class _Progress:
    groups: list[Group] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    left_alone: set[tuple[fx.Node, fx.Node]] = field(default_factory=set)


def merge(captured: fx.GraphModule) -> fx.GraphModule:
    """Return a captured graph in which each sum of linear paths from one tensor is one `nn.Conv2d`.

    Merged are at least two paths with a convolution among them, or one convolution with the scale factors and shifts
    behind it. A chain of convolutions is one only inside a sum, and nothing is merged that would cost more
    multiply-adds than its parts. Each group is compared with its parts in float64 on random input.

    A merged layer is named `<module>.reparam`, by the innermost module that holds all its convolutions; a group of one
    convolution keeps that one's name. The report is in `meta["reparameterization"]`. The input is not changed.
    """
    graph_module = copy_graph(captured)
    progress = _Progress()
    before = _count(graph_module)
    # What is merged may be a path of a larger sum, so look again until nothing is found.
    with torch.no_grad():
        while _merge_once(graph_module, progress):
            pass
    merged = fx.GraphModule(graph_module, graph_module.graph, class_name=type(captured).__name__).eval()
    merged.graph.lint()
    merged.meta["reparameterization"] = MergeReport(
        groups=tuple(progress.groups),
        refused=tuple(Refusal(name=name, reason=reason) for name, reason in progress.refused.items()),
        convolutions_before=before,
        convolutions_after=_count(merged),
    )
    return merged


def _count(graph_module: fx.GraphModule) -> int:
    called = [node for node in graph_module.graph.nodes if node.op == "call_module"]
    return sum(isinstance(graph_module.get_submodule(str(node.target)), nn.Conv2d) for node in called)


def _merge_once(graph_module: fx.GraphModule, progress: _Progress) -> bool:
    """Go through the graph from its end, so that a sum comes before its terms; return whether something merged."""
    nodes = reversed(list(graph_module.graph.nodes))
    return sum(_merge_at(graph_module, node, progress) for node in nodes) > 0


def _merge_at(graph_module: fx.GraphModule, top: fx.Node, progress: _Progress) -> bool:
    """Merge, in place, paths that meet at a node; return whether there were any."""
    if not top.users or not is_feature_map(top):
        return False
    terms = _flattened(top)
    is_sum = bool(terms)
    if is_sum:
        behind = [paths_to(graph_module, term) for _, term in terms]
    elif scales_or_shifts(top):
        terms, behind = [(1, top)], [paths_to(graph_module, top, is_inside=False)]
    else:
        return False
    for root in _shared_roots(behind) if is_sum else _nearest_root(behind[0]):
        if (top, root) in progress.left_alone:
            continue
        paths = [(sign, paths[root]) for (sign, _), paths in zip(terms, behind, strict=True) if root in paths]
        maps = [(sign, path) for sign, path in paths if isinstance(path, Affine)]
        refusals = [path.reason for _, path in paths if isinstance(path, Refused)]
        merges = any(path.layers for _, path in maps) and len(maps) > is_sum
        if merges:
            try:
                members = [term for term, paths in zip(terms, behind, strict=True) if _is_map(paths.get(root))]
                path, kernel = _one_convolution(graph_module, root, maps, members)
            except NotOneMapError as reason:
                refusals.append(str(reason))
                merges = False
        if refusals:
            progress.refused.setdefault(_module_of(top), refusals[0])
        if merges:
            rest = [term for term in terms if term not in members]
            name = _replace(graph_module, top, rest, path, kernel)
            progress.groups.append(Group(name=name, paths=path.paths, convolutions=len(path.layers), kernel=path.size))
            return True
        progress.left_alone.add((top, root))
    return False


def _flattened(node: fx.Node) -> list[Term]:
    """Return the terms of a sum, those of the sums that only it uses among them."""
    flat: list[Term] = []
    for sign, term in terms_of(node):
        inner = _flattened(term) if len(term.users) == 1 else []
        flat += [(sign * inner_sign, inner_term) for inner_sign, inner_term in inner] or [(sign, term)]
    return flat


def _shared_roots(behind: list[dict[fx.Node, Path]]) -> list[fx.Node]:
    """Return the tensors from which at least two terms come, those of most terms first, then the nearest."""
    counts = Counter(root for paths in behind for root in paths)
    return [root for root, count in counts.most_common() if count > 1]


def _nearest_root(paths: dict[fx.Node, Path]) -> list[fx.Node]:
    """Return the first tensor behind which a convolution lies: with a longer way a chain would be merged."""
    return [root for root, path in paths.items() if isinstance(path, Refused) or path.layers][:1]


def _is_map(path: Path | None) -> bool:
    return isinstance(path, Affine)


def _one_convolution(
    graph_module: fx.GraphModule, root: fx.Node, maps: list[tuple[int, Affine]], members: list[Term]
) -> tuple[Affine, Tensor]:
    """Return the sum of maps as a convolution with its kernel, compared with what the graph computes.

    Raises:
        NotOneMapError: the sum is none, costs more than its parts, or differs from them.
    """
    total = added(list(maps))
    if isinstance(total, Refused):
        raise NotOneMapError(total.reason)
    path = as_convolution(total)
    if convolution_macs(path) > path.macs:
        raise NotOneMapError(
            f"one convolution takes {convolution_macs(path):,} multiply-adds of an image, its parts {path.macs:,}"
        )
    kernel = path.kernel()
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, *root.meta["val"].shape[1:], dtype=torch.float64, generator=generator).to(kernel.device)
    values = {root: image}
    expected = torch.stack([sign * evaluated(graph_module, term, values) for sign, term in members]).sum(0)
    actual = F.conv2d(image, kernel, path.bias, path.stride, path.front, 1, path.groups)
    difference = float((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-300))
    if not difference <= TOLERANCE:
        raise NotOneMapError(f"the merged convolution differs from its parts by {difference:.1e} of the largest output")
    return path, kernel


def _replace(graph_module: fx.GraphModule, top: fx.Node, rest: list[Term], path: Affine, kernel: Tensor) -> str:
    """Put the convolution, and the sum of it with the terms that it leaves, in the place of a node; return its name."""
    graph, dtype = graph_module.graph, top.meta["val"].dtype
    layer = make_layer(
        nn.Conv2d,
        kernel.to(dtype),
        path.bias.to(dtype),
        stride=path.stride,
        padding=path.front,
        dilation=(1, 1),
        groups=path.groups,
    )
    name = _named(graph_module, path.layers, layer)
    with graph.inserting_before(top):
        new = graph.call_module(name, (path.root,))
        new.meta = dict(top.meta)
        for sign, term in rest:
            new = graph.call_function(aten.add.Tensor if sign == 1 else aten.sub.Tensor, (new, term))
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


def _module_of(node: fx.Node) -> str:
    """Return the path of the innermost module whose code made a node, or the node's name at the outermost."""
    modules = [name for name, _ in node.meta.get("nn_module_stack", {}).values() if name]
    return modules[-1] if modules else node.name
