"""A network run again and again with some nodes computed in another way; what lies before them runs once."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torch import Tensor, fx
from torch.utils import _pytree as pytree

from repquant.graph.run import Batch, inputs_of

Compute = Callable[..., Any]
"""Takes the arguments of a node and returns its value."""
SeeOutputs = Callable[[str, tuple[Tensor, ...]], None]


def run_alternatives(
    graph: fx.GraphModule,
    batch: Batch,
    replaced: Mapping[str, Compute],
    alternatives: Mapping[str, Mapping[str, Compute]] = MappingProxyType({}),
    see: SeeOutputs = lambda *_: None,
) -> tuple[Tensor, ...]:
    """Return the outputs of a network for a batch, and show those with each alternative.

    With n alternatives, evenly spread, this costs about n/2 runs more than one.

    Args:
        graph: from `capture`.
        batch: see `graph.run.inputs_of`.
        replaced: node name -> how it is computed in all runs, but where an alternative has it too.
        alternatives: name of a further run -> node name -> how it is computed there. Nodes compute: none is an input.
        see: called with the name of an alternative and the outputs of the network with it.

    Raises:
        InputError: a batch that does not fit the network.
    """
    runner = _Runner(graph)
    nodes = [node for node in graph.graph.nodes if node.op != "placeholder"]
    placeholders = [node for node in graph.graph.nodes if node.op == "placeholder"]
    values: dict[fx.Node, Any] = dict(zip(placeholders, inputs_of(graph, batch), strict=True))
    position = {node.name: index for index, node in enumerate(nodes)}
    beginning: dict[int, list[str]] = defaultdict(list)
    for name, computes in alternatives.items():
        beginning[min(position[node] for node in computes)].append(name)
    for index, node in enumerate(nodes):
        for name in beginning[index]:
            see(name, runner.finish(nodes[index:], dict(values), {**replaced, **alternatives[name]}))
        if node.op == "output":
            break
        runner.step(node, values, replaced.get(node.name))
    return runner.finish(nodes[-1:], values, replaced)


class _Runner(fx.Interpreter):
    """Computes nodes one by one, each with its own function or another."""

    def step(self, node: fx.Node, values: dict[fx.Node, Any], compute: Compute | None) -> None:
        """Add the value of a node to `values`, and drop those that nobody needs any more."""
        self.env = values
        if compute is None:
            values[node] = self.run_node(node)
        else:
            args, kwargs = self.fetch_args_kwargs_from_env(node)
            values[node] = compute(*args, **kwargs)
        for done in self.user_to_last_uses.get(node, []):
            del values[done]

    def finish(
        self, nodes: Sequence[fx.Node], values: dict[fx.Node, Any], replaced: Mapping[str, Compute]
    ) -> tuple[Tensor, ...]:
        """Compute the rest, and return the output tensors."""
        for node in nodes:
            self.step(node, values, replaced.get(node.name))
        return tuple(leaf for leaf in pytree.tree_leaves(values[nodes[-1]]) if isinstance(leaf, Tensor))
