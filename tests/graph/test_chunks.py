import gc
from functools import partial

import torch
from torch import nn

from repquant.graph.capture import capture
from repquant.graph.chunks import run_in_chunks, shelve_inputs
from repquant.graph.operators import layer_nodes
from repquant.graph.run import run
from repquant.graph.shelf import Shelf


class Shortcuts(nn.Module):
    """A value that is needed much later, a constant, and a value of several parts."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.offset = nn.Parameter(torch.randn(4, 1, 1))

    def forward(self, x):
        first = torch.relu(self.first(x)) + self.offset
        left, right = self.second(first).chunk(2, 1)
        return self.third(first * torch.cat([right, left], 1) + self.offset)


def keep_sums(sums, x):
    sums.append(x.double().sum((1, 2, 3)))


def shown_values(graph, batches, memory):
    """What each layer reads, by the chunked run, and how many bytes of tensors were alive at most."""
    reads = {name: tuple(node.all_input_nodes) for name, node in layer_nodes(graph).items()}
    shown, alive = {}, []

    def see(name, seen):
        alive.append(sum(x.nbytes for x in gc.get_objects() if type(x) is torch.Tensor and x.ndim == 4))
        (values,) = seen
        shown[name] = []
        for part in values:
            keep_sums(shown[name], part)
        assert [len(part) for part in values] == [len(part) for part in shown[name]]  # they can be read again

    with Shelf(memory) as shelf, torch.no_grad():
        run_in_chunks(graph, shelve_inputs(graph, batches, shelf), reads, see)
    return shown, max(alive)


def graph_of_shortcuts():
    torch.manual_seed(0)
    return capture(Shortcuts().eval(), torch.randn(2, 4, 8, 8))


def test_each_layer_sees_what_it_reads_in_an_ordinary_run():
    graph, batches = graph_of_shortcuts(), [torch.randn(count, 4, 8, 8) for count in (3, 2)]
    sources = {name: node.all_input_nodes[0].name for name, node in layer_nodes(graph).items()}
    seen = {source: [] for source in sources.values()}
    with torch.no_grad():
        for batch in batches:
            run(graph, batch, {source: partial(keep_sums, sums) for source, sums in seen.items()})
    for memory in (0, 5000, 1 << 20):
        shown, _ = shown_values(graph, batches, memory)
        assert shown.keys() == sources.keys()
        for name, parts in shown.items():
            assert all(torch.allclose(*pair) for pair in zip(parts, seen[sources[name]], strict=True))


def test_memory_does_not_grow_with_the_number_of_batches():
    graph = graph_of_shortcuts()
    few, many = (
        shown_values(graph, (torch.randn(2, 4, 8, 8) for _ in range(count)), memory=20_000)[1] for count in (10, 40)
    )
    assert few == many
