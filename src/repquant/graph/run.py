"""The one loop that runs a captured network: observe tensors on the way, or run on from the middle."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from repquant.errors import InputError
from repquant.graph.devices import device_of

Batch = Any
"""A tensor, a tuple or list of tensors, a dict of keyword inputs, or a pair of inputs and labels."""
Observer = Callable[[Tensor], Tensor | None]
"""Sees a value; what it returns, if it does, takes the value's place."""


def inputs_of(graph: fx.GraphModule, batch: Batch) -> list[Tensor]:
    """Return the input tensors of a captured network in a batch, in the order of its placeholders.

    What a tuple or list holds beyond the inputs, such as labels, is left out.

    Args:
        graph: from `capture`.
        batch: as a data loader gives it.

    Raises:
        InputError: fewer tensors than inputs, something that is no tensor, or another batch size where the network was
            captured for one alone.
    """
    names = [node.name for node in graph.graph.nodes if node.op == "placeholder"]
    leaves = pytree.tree_leaves(batch)[: len(names)]
    if len(leaves) < len(names) or not all(isinstance(leaf, Tensor) for leaf in leaves):
        given = ", ".join(type(leaf).__name__ for leaf in leaves) or "nothing"
        raise InputError(f"a batch holds {given}; the network needs {len(names)} tensors: {', '.join(names)}")
    captured = graph.meta.get("repquant")
    if captured is not None and not captured.dynamic_batch:
        _require_sizes(names, leaves, pytree.tree_leaves(captured.example))
    device = device_of(graph)
    return [leaf.to(device) for leaf in leaves]


def _require_sizes(names: list[str], given: list[Tensor], captured: list[Tensor]) -> None:
    """Refuse another batch than that of the example, where the network's code takes no other."""
    for name, value, example in zip(names, given, captured, strict=True):
        if value.ndim and example.ndim and len(value) != len(example):
            raise InputError(
                f"{name} is a batch of {len(value)}; the network could only be captured for batches of {len(example)}, "
                "as its example has: give batches of this size, or an example of yours"
            )


class _Observing(fx.Interpreter):
    """Runs node by node and shows the values that somebody wants; values that nobody needs any more are freed."""

    def __init__(self, graph: fx.GraphModule, observers: Mapping[str, Observer]) -> None:
        super().__init__(graph)
        self.extra_traceback = False  # messages speak of tensors and layers, not of nodes
        self._observers = observers

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name not in self._observers:
            return value
        replaced = self._observers[n.name](value)
        return value if replaced is None else replaced


def run(graph: fx.GraphModule, batch: Batch, observers: Mapping[str, Observer] | None = None) -> tuple[Tensor, ...]:
    """Return the output tensors of a captured network for a batch, in the order in which it returns them.

    Args:
        graph: from `capture`.
        batch: see `inputs_of`.
        observers: node name -> called with the node's value.

    Raises:
        InputError: a batch that does not fit the network.
    """
    outputs = _Observing(graph, observers or {}).run(*inputs_of(graph, batch), enable_io_processing=False)
    return tuple(leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor))


@torch.inference_mode()
def observe(
    graph: fx.GraphModule,
    batches: Iterable[Batch],
    observers: Mapping[str, Observer],
    on_batch: Callable[[int], None] = lambda _: None,
) -> int:
    """Run a network over batches, show the values of nodes, and return the number of images.

    Memory holds one batch.

    Args:
        graph: from `capture`.
        batches: see `inputs_of`.
        observers: node name -> called with the node's value of each batch.
        on_batch: called with the number of images after each batch.

    Raises:
        InputError: no batch came, or one does not fit the network.
    """
    images = 0
    for batch in batches:
        count = batch_size(graph, batch)
        run(graph, batch, observers)
        images += count
        on_batch(count)
    if images == 0:
        raise InputError("there are no calibration images; give at least one batch")
    return images


def batch_size(graph: fx.GraphModule, batch: Batch) -> int:
    """Return the number of images in a batch: the first dimension of its first input."""
    return len(inputs_of(graph, batch)[0])
