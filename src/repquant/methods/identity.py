"""The identity branch set apart from the equivalent kernel, so that each can have a quantization grid of its own.

In a fused block the identity lies on the center of the kernel's diagonal, W[i, i mod (C/g), 1, 1], many times larger
than the other weights, and takes the int8 grid for itself. Here W = R + S: the convolution keeps the remainder R, the
shortcut computes S.

- "depthwise": S is the diagonal center, a 1x1 depthwise convolution; R is zero there.
- "residual": S is the identity, a plain addition; the diagonal center of R keeps what is missing to it. That is small
  where channel scales have brought the diagonal near 1.
- "coarse-fine": S is the whole center of the kernel rounded to the grid of the weights, a 1x1 convolution; R has
  the rounding error in its center (coarse and fine weight splitting, CFWS).

Kernels alone do not tell whether there was a branch: every convolution that has the shape of one counts.
"""

from collections.abc import Collection

import torch
from torch import Tensor, fx, nn

from repquant.choices import ShortcutKind
from repquant.graph.copies import copy_graph
from repquant.graph.layers import make_layer
from repquant.graph.layout import resolve_keep_float
from repquant.graph.names import place
from repquant.graph.operators import layer_nodes
from repquant.numerics.affine import Scheme


def may_have_identity(layer: nn.Module) -> bool:
    """Whether a layer has the shape of a block with an identity branch in its kernel."""
    return (
        type(layer) is nn.Conv2d
        and layer.kernel_size == (3, 3)
        and layer.stride == layer.dilation == layer.padding == (1, 1)
        and layer.in_channels == layer.out_channels
    )


def identity_weights(layer: nn.Module) -> Tensor | None:
    """Return the weights (O,) that an identity branch may have been added to or become; None where there are none.

    They are the diagonal center of a 3x3 kernel, and all weights of the factor for each channel that is the shortcut
    of an identity set apart.
    """
    if type(layer) is not nn.Conv2d:
        return None
    weight = layer.weight.detach()
    if may_have_identity(layer):
        return diagonal_center(weight)
    is_factor = layer.kernel_size == (1, 1) and layer.groups == layer.in_channels == layer.out_channels
    return weight.flatten() if is_factor else None


def diagonal_center(kernel: Tensor) -> Tensor:
    """Return the weights that an identity branch is added to: (C, C/groups, 3, 3) -> (C,)."""
    return kernel[_diagonal(kernel)]


def identity_mask(layer: nn.Module) -> Tensor | None:
    """Return where an identity branch lands in the weight, (O, I/groups, 3, 3); None where none fits the shape."""
    if not may_have_identity(layer):
        return None
    assert isinstance(layer.weight, Tensor)
    mask = torch.zeros_like(layer.weight, dtype=torch.bool)
    mask[_diagonal(mask)] = True
    return mask


def identity_layers(graph: fx.GraphModule, keep_float: Collection[str] = ()) -> list[str]:
    """Return the convolutions that may have an identity branch in their kernel.

    Args:
        graph: from `capture`.
        keep_float: layers that are left out, see `graph.layout.resolve_keep_float`.
    """
    kept = resolve_keep_float(graph, keep_float)
    return [name for name in layer_nodes(graph) if name not in kept and may_have_identity(graph.get_submodule(name))]


def count_identities(graph: fx.GraphModule, keep_float: Collection[str] = ()) -> int:
    """Return how many layers `identity_layers` finds."""
    return len(identity_layers(graph, keep_float))


@torch.no_grad()
def split_identity(
    graph: fx.GraphModule, kind: ShortcutKind, scheme: Scheme, layers: Collection[str]
) -> fx.GraphModule:
    """Return a copy of a network with a shortcut beside convolutions.

    The copy computes the same up to rounding. The convolution keeps its name; a shortcut with weights has the name of
    the convolution with `_shortcut` behind it.

    Args:
        graph: from `capture`; it is not changed.
        kind: of the shortcut.
        scheme: of the weights, for "coarse-fine": the grid that the coarse part lies on.
        layers: the convolutions, some of `identity_layers`.

    Raises:
        InputError: `keep_float` has a name that is not known.
    """
    split = copy_graph(graph)
    nodes = layer_nodes(split)
    for name in layers:
        convolution = split.get_submodule(name)
        assert isinstance(convolution, nn.Conv2d)
        _set_apart(split, nodes[name], _shortcut(convolution, kind, scheme))
    split.graph.lint()
    split.recompile()
    return split


def _diagonal(kernel: Tensor) -> tuple[Tensor, Tensor, int, int]:
    channels = torch.arange(len(kernel), device=kernel.device)
    return channels, channels % kernel.shape[1], 1, 1


def _shortcut(convolution: nn.Conv2d, kind: ShortcutKind, scheme: Scheme) -> nn.Conv2d | None:
    """Take the shortcut out of a convolution's kernel, in place, and return it; None is the identity itself."""
    kernel = convolution.weight
    if kind == "residual":
        kernel[_diagonal(kernel)] -= 1.0
        return None
    if kind == "depthwise":
        factor = diagonal_center(kernel).clone()
        kernel[_diagonal(kernel)] = 0.0
        return _pointwise(factor.reshape(-1, 1, 1, 1), groups=len(kernel))
    center = kernel[:, :, 1:2, 1:2]
    largest = center.abs().amax((1, 2, 3), keepdim=True)
    step = (largest if scheme.channel_axis is not None else largest.max()) / scheme.qmax
    coarse = torch.round(center / step.clamp(min=torch.finfo(step.dtype).tiny)) * step
    center -= coarse
    return _pointwise(coarse, convolution.groups)


def _pointwise(weight: Tensor, groups: int) -> nn.Conv2d:
    layer = make_layer(nn.Conv2d, weight, None, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=groups)
    assert isinstance(layer, nn.Conv2d)
    return layer


def _set_apart(graph: fx.GraphModule, node: fx.Node, shortcut: nn.Conv2d | None) -> None:
    (source,) = node.args
    assert isinstance(source, fx.Node)
    term = source
    if shortcut is not None:
        # Before the convolution: what is computed last is the one that keeps its sum in 32 bits.
        with graph.graph.inserting_before(node):
            term = graph.graph.call_module(place(graph, f"{node.target}_shortcut", shortcut), (source,))
        term.meta = dict(node.meta)
    with graph.graph.inserting_after(node):
        total = graph.graph.call_function(torch.ops.aten.add.Tensor, (node, term))
    total.meta = dict(node.meta)
    node.replace_all_uses_with(total, delete_user_cb=lambda user: user is not total)
