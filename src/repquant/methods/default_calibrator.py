"""Which ranges a network gets when nobody asks for others."""

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from repquant.choices import LOSS_AWARE, Calibrator
from repquant.graph.interface import captured_of
from repquant.graph.operators import find_operator, holds_floats
from repquant.methods.divergence import are_logits
from repquant.targets.target import Target

aten = torch.ops.aten


def default_calibrator(graph: fx.GraphModule, target: Target) -> Calibrator:
    """Return "loss-aware" where it was shown to be better than "mse", and "mse" elsewhere.

    It was for networks with SiLU or GELU. What these give lies mostly in a small interval around zero, with a long tail
    of positive values. Clipped peaks and small values that round to 0 both err in one direction, and the layers behind
    keep that. And it was with activations of fewer than 8 bits (decision 21). Outputs have to be logits, by their
    shape. All operators have to be understood, since others may have no derivative, and the batch has to be free.

    Args:
        graph: from `capture`.
        target: the schemes.
    """
    *nodes, returned = graph.graph.nodes
    outputs = [node.meta["val"] for node in pytree.tree_leaves(returned.args) if isinstance(node, fx.Node)]
    floats = [output for output in outputs if isinstance(output, Tensor) and output.is_floating_point()]
    is_classifier = bool(floats) and all(are_logits(output) for output in floats)
    gains = target.activation.bits < 8 or any(_has_tail(node) for node in nodes)
    is_plain = captured_of(graph).dynamic_batch and all(_is_understood(node) for node in nodes)
    return LOSS_AWARE if is_classifier and gains and is_plain else "mse"


def _is_understood(node: fx.Node) -> bool:
    return node.op != "call_function" or not holds_floats(node) or find_operator(node) is not None


def _has_tail(node: fx.Node) -> bool:
    """Whether a node computes a GELU or a SiLU, as one operator or as the product x sigmoid(x)."""
    if node.target is not aten.mul.Tensor:
        return node.target in (aten.silu.default, aten.gelu.default)
    factors = [factor for factor in node.args if isinstance(factor, fx.Node)]
    return any(factor.target is aten.sigmoid.default and factor.args[0] in factors for factor in factors)
