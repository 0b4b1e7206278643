"""A network run node by node over all images, so that a layer sees the inputs of all of them before it computes.

Images run in chunks, and a value is freed when nobody needs it any more. Memory holds the values that are still needed,
of all images, and what one chunk takes inside a node.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import Tensor, fx

from repquant.graph.run import Batch, inputs_of


def run_in_chunks(
    graph: fx.GraphModule,
    batches: Iterable[Batch],
    reads: Mapping[str, Sequence[fx.Node]],
    see: Callable[[str, list[list[Tensor]]], None],
) -> None:
    """Run a network over batches, and show values before a module computes.

    Args:
        graph: captured or simulated.
        batches: each is a chunk.
        reads: name of a module -> nodes, each computed before it and still needed then, such as what it reads.
        see: called with the name of each of these modules and, for each of its nodes, the value in every chunk; it may
            change the module.
    """
    placeholders = [node for node in graph.graph.nodes if node.op == "placeholder"]
    chunks: list[fx.Interpreter] = []
    for batch in batches:
        chunks.append(fx.Interpreter(graph))
        chunks[-1].env = dict(zip(placeholders, inputs_of(graph, batch), strict=True))
    for node in graph.graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        if node.op == "call_module" and str(node.target) in reads:
            name = str(node.target)
            see(name, [[chunk.env[shown] for chunk in chunks] for shown in reads[name]])
        for chunk in chunks:
            chunk.env[node] = chunk.run_node(node)
            for done in chunk.user_to_last_uses.get(node, []):
                del chunk.env[done]
