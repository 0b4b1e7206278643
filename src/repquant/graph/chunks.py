"""A network run node by node over all images, so that a layer sees the inputs of all of them before it computes.

Images run in chunks, and a value is freed when nobody needs it any more. Memory holds the values that are still needed,
of all images, and what one chunk takes inside a node.
"""

from collections.abc import Callable, Iterable

from torch import Tensor, fx

from repquant.graph.run import Batch, inputs_of


def run_in_chunks(
    graph: fx.GraphModule,
    batches: Iterable[Batch],
    is_seen: Callable[[str], bool],
    see: Callable[[str, list[Tensor]], None],
) -> None:
    """Run a network over batches, and show the inputs of modules before they compute.

    Args:
        graph: captured or simulated.
        batches: each is a chunk.
        is_seen: whether a module, by its name, is shown.
        see: called with the name of a module and its input in every chunk; it may change the module.
    """
    placeholders = [node for node in graph.graph.nodes if node.op == "placeholder"]
    chunks: list[fx.Interpreter] = []
    for batch in batches:
        chunks.append(fx.Interpreter(graph))
        chunks[-1].env = dict(zip(placeholders, inputs_of(graph, batch), strict=True))
    for node in graph.graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        if node.op == "call_module" and is_seen(str(node.target)):
            see(str(node.target), [chunk.env[node.args[0]] for chunk in chunks])
        for chunk in chunks:
            chunk.env[node] = chunk.run_node(node)
            for done in chunk.user_to_last_uses.get(node, []):
                del chunk.env[done]
