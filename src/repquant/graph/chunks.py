"""A network run layer by layer over all images, so that a layer sees the inputs of all of them before it computes.

Images run in chunks. Between two layers the values that are still needed wait on a shelf, so memory holds its budget
and what one chunk takes, however many images there are.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from repquant.graph.run import Batch, inputs_of
from repquant.graph.shelf import Shelf


@dataclass(frozen=True)
class Shelves:
    """Values in chunks, one from each batch of images, that can be read several times.

    Attributes:
        parts: as `Shelf.put` returned them.
        shelf: where they are.
    """

    parts: Sequence[Any]
    shelf: Shelf

    def __iter__(self) -> Iterator[Any]:
        """Yield one after the other; memory holds the one that is looked at."""
        return (self.shelf.get(part) for part in self.parts)


def shelve_inputs(graph: fx.GraphModule, batches: Iterable[Batch], shelf: Shelf) -> Shelves:
    """Return the inputs of a network in batches, a list of tensors each, which are read once and put on a shelf.

    Raises:
        InputError: a batch that does not fit the network.
    """
    return Shelves([shelf.put(inputs_of(graph, batch)) for batch in batches], shelf)


def run_in_chunks(
    graph: fx.GraphModule,
    inputs: Shelves,
    reads: Mapping[str, Sequence[fx.Node]],
    see: Callable[[str, list[Iterable[Tensor]]], None],
) -> None:
    """Run a network over its inputs up to the last module that reads, and show values before each of them computes.

    Args:
        graph: captured or simulated.
        inputs: from `shelve_inputs`; they are used up.
        reads: name of a module -> nodes, each computed before it and still needed then, such as what it reads.
        see: called with the name of each of these modules and, for each of its nodes, the value in every chunk, to be
            read as often as it likes; it may change the module.
    """
    shelf, interpreter = inputs.shelf, fx.Interpreter(graph)
    placeholders = [node for node in graph.graph.nodes if node.op == "placeholder"]
    nodes = [node for node in graph.graph.nodes if node.op not in ("placeholder", "output")]
    chunks = [dict(zip(placeholders, part, strict=True)) for part in inputs.parts]
    begin = 0
    for end, node in enumerate(nodes):
        name = str(node.target)
        if node.op != "call_module" or name not in reads:
            continue
        for chunk in chunks:
            _advance(interpreter, nodes[begin:end], chunk, shelf)
        see(name, [Shelves([chunk[shown] for chunk in chunks], shelf) for shown in reads[name]])
        begin = end


def _advance(interpreter: fx.Interpreter, nodes: list[fx.Node], values: dict[fx.Node, Any], shelf: Shelf) -> None:
    """Compute nodes of one chunk, in place: values that nobody needs any more leave the shelf, new ones come there."""
    read = {source for node in nodes for source in node.all_input_nodes}
    env = interpreter.env = {node: shelf.get(value) for node, value in values.items() if node in read}
    for node in nodes:
        env[node] = interpreter.run_node(node)
        for done in interpreter.user_to_last_uses.get(node, []):
            del env[done]
            if done in values:
                shelf.drop(values.pop(done))
    # Constants belong to the network: they need no place of their own.
    new = {node: value for node, value in env.items() if node not in values}
    values |= {node: value if node.op == "get_attr" else shelf.put(value) for node, value in new.items()}
    interpreter.env = {}
