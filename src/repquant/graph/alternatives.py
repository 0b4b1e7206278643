"""A network run again and again with one node computed in another way; what lies before that node runs once."""

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
    alternatives: Mapping[str, Compute] = MappingProxyType({}),
    see: SeeOutputs = lambda *_: None,
) -> tuple[Tensor, ...]:
    """Return the outputs of a network for a batch, and show those with each alternative.

    With n alternatives, evenly spread, this costs about n/2 runs more than one.

    Args:
        graph: from `capture`.
        batch: see `graph.run.inputs_of`.
        replaced: node name -> how it is computed in all runs, but for its own alternative.
        alternatives: node name -> how it is computed in one further run.
        see: called with the name of an alternative and the outputs of the network with it.

    Raises:
        InputError: a batch that does not fit the network.
    """
    runner = _Runner(graph, replaced)
    nodes = [node for node in graph.graph.nodes if node.op != "placeholder"]
    placeholders = [node for node in graph.graph.nodes if node.op == "placeholder"]
    values: dict[fx.Node, Any] = dict(zip(placeholders, inputs_of(graph, batch), strict=True))
    for index, node in enumerate(nodes):
        if node.name in alternatives:
            branch = dict(values)
            runner.step(node, branch, alternatives[node.name])
            see(node.name, runner.finish(nodes[index + 1 :], branch))
        if node.op == "output":
            break
        runner.step(node, values, replaced.get(node.name))
    return runner.finish(nodes[-1:], values)


class _Runner(fx.Interpreter):
    """Computes nodes one by one, each with its own function or another."""

    def __init__(self, graph: fx.GraphModule, replaced: Mapping[str, Compute]) -> None:
        super().__init__(graph)
        self._replaced = replaced

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

    def finish(self, nodes: Sequence[fx.Node], values: dict[fx.Node, Any]) -> tuple[Tensor, ...]:
        """Compute the rest, and return the output tensors."""
        for node in nodes:
            self.step(node, values, self._replaced.get(node.name))
        return tuple(leaf for leaf in pytree.tree_leaves(values[nodes[-1]]) if isinstance(leaf, Tensor))
