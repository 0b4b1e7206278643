"""Loss-aware ranges: for each tensor that of the candidates which changes the outputs of the network least.

The calibrators look at one tensor by itself. What its rounding does to the outputs depends on what follows: an average
keeps what clipping takes, which errs in one direction, and takes off roundings, which err in both. Nahshan et al.
("Loss Aware Post-training Quantization", Machine Learning, 2021) choose ranges by the loss of the network, all together
by a search of many passes. Here each is chosen by itself, and what it does is reckoned to first order. With the error e
of the tensor and the Jacobian J of the outputs, logits change by J e. The divergence of their softmax p grows by
e^T J^T H J e / 2, where H = diag(p) - p p^T. For random vectors v of covariance H this is the mean of (e^T J^T v)^2 / 2
(Hutchinson, "A Stochastic Estimator of the Trace of the Influence Matrix", 1989). One pass backward gives J^T v for all
tensors and all candidates.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, fx

from repquant.choices import CALIBRATORS
from repquant.errors import InputError
from repquant.graph.alternatives import Compute, run_alternatives
from repquant.graph.batches import single_images
from repquant.graph.copies import copy_graph
from repquant.graph.layout import Layout, RoundedTensor
from repquant.graph.operators import KEEPS_GRID, find_operator, layer_nodes
from repquant.graph.plan import Range
from repquant.graph.run import Batch, inputs_of
from repquant.methods.divergence import are_logits
from repquant.numerics.affine import grid_for_range
from repquant.numerics.histogram import Histogram
from repquant.numerics.ranges import search_range
from repquant.simulation.layers import FakeQuantize
from repquant.targets.target import Target

FIRST = "mse"
"""The calibrator whose range is kept where no other one is better."""

NARROW_PERCENTILE = 99.9
"""Of a candidate that clips more than the calibrators do."""

ALIKE = 0.02
"""Ranges whose ends differ by less, as a share of the range, are tried once."""

IMAGES = 64
"""That ranges are compared on, at least: whole batches are read."""

_VECTORS = 4  # random vectors an image gets
_SEED = 0


def candidate_ranges(histogram: Histogram, target: Target, *, percentile: float = 99.99) -> tuple[Range, ...]:
    """Return the ranges that are tried for a tensor, that of `FIRST` before the others; none is tried twice."""
    settings = [(name, percentile) for name in dict.fromkeys((FIRST, *CALIBRATORS))]
    settings.append(("percentile", min(percentile, NARROW_PERCENTILE)))
    found = [search_range(name, histogram, target.activation, percentile=given) for name, given in settings]
    distinct: list[Range] = []
    for ends in found:
        if not any(_are_alike(ends, other) for other in distinct):
            distinct.append(ends)
    return tuple(distinct)


def _are_alike(one: Range, other: Range) -> bool:
    """Whether no end moves by more than `ALIKE` of the range."""
    span = max(one[1] - one[0], other[1] - other[0])
    return all(abs(a - b) <= ALIKE * span for a, b in zip(one, other, strict=True))


@dataclass
class _Tried:
    """A tensor whose candidates are compared.

    Attributes:
        readers: nodes that read it rounded, and at which places among their arguments.
        quantizers: one for each candidate.
        harm: what each did to the outputs, summed over images.
    """

    readers: Mapping[fx.Node, tuple[int, ...]]
    quantizers: Sequence[FakeQuantize]
    harm: Tensor


@torch.inference_mode(mode=False)
@torch.enable_grad()
def choose_ranges(
    graph: fx.GraphModule,
    layout: Layout,
    candidates: Mapping[str, Sequence[Range]],
    target: Target,
    batches: Iterable[Batch],
    on_batch: Callable[[int], None] = lambda _: None,
) -> dict[str, Range]:
    """Return for each tensor the candidate with which the outputs change least when it alone is rounded.

    Outputs that are no logits count with the share of their power that changes. What nothing reads rounded, and what
    no output depends on in a way that autograd knows, gets its first candidate. An image where the change of an output
    is infinite or NaN does not count for that tensor. An image costs a pass forward, four backward, and a rounding of
    each tensor by each of its candidates. Memory holds what autograd keeps of one image and four gradients of each
    tensor; of a batch where the network takes no other. The random vectors are the same in every call.

    Args:
        graph: from `methods.ptq.prepare`.
        layout: where it will be rounded.
        candidates: tensor name -> ranges, at least one; of several that change the outputs alike, the first is taken.
        target: the schemes.
        batches: see `graph.run.inputs_of`; labels are not needed. All of them are read.
        on_batch: called with the number of images after each batch.

    Raises:
        InputError: no batch came, one does not fit the network, or an operator has no derivative.
    """
    frozen = copy_graph(graph).requires_grad_(False)
    tried = {
        name: _Tried(
            readers=readers,
            quantizers=[FakeQuantize(grid_for_range(*ends, target.activation)) for ends in candidates[name]],
            harm=torch.zeros(len(candidates[name]), dtype=torch.float64),
        )
        for name, tensor in layout.tensors.items()
        if len(candidates[name]) > 1 and (readers := _readers(frozen, layout, tensor))
    }
    generator = torch.Generator().manual_seed(_SEED)
    images = 0
    for batch in batches:
        inputs = inputs_of(graph, batch)
        for image in single_images(graph, inputs):
            try:
                _add_harm(frozen, tried, image, generator)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                raise InputError(
                    f"the outputs can't be differentiated, which loss-aware ranges need: {error}; give another "
                    "calibrator, such as mse"
                ) from error
        images += len(inputs[0])
        on_batch(len(inputs[0]))
    if images == 0:
        raise InputError("there are no images to compare ranges on; give at least 1")
    harms = {name: part.harm.tolist() for name, part in tried.items()}
    best = {name: harm.index(min(harm)) for name, harm in harms.items()}
    return {name: ranges[best.get(name, 0)] for name, ranges in candidates.items()}


def _add_harm(graph: fx.GraphModule, tried: Mapping[str, _Tried], image: list[Tensor], generator: Generator) -> None:
    """Add what each candidate does to the outputs for an image."""
    probes = _Probes(graph, tried)
    outputs = [output for output in run_alternatives(graph, image, probes.computes) if output.requires_grad]
    if not outputs:
        return
    values = [value for _, value in probes.values]
    gradients = [
        torch.autograd.grad(
            outputs,
            values,
            [_direction(output.detach(), generator) for output in outputs],
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        for _ in range(_VECTORS)
    ]
    changes: dict[str, Tensor] = {}  # (candidates, vectors)
    with torch.no_grad():
        for (name, value), *directions in zip(probes.values, *gradients, strict=True):
            errors = torch.stack([(quantize(value) - value).flatten() for quantize in tried[name].quantizers])
            change = errors @ torch.stack([direction.flatten() for direction in directions], 1)
            changes[name] = changes.get(name, 0.0) + change
    for name, change in changes.items():
        if torch.isfinite(change).all():
            tried[name].harm += change.double().square().mean(1).cpu()


def _direction(output: Tensor, generator: Generator) -> Tensor:
    """Return a random vector; the square of its product with a small change of an output is how much that matters."""
    signs = torch.randint(2, output.shape, generator=generator).to(output) * 2 - 1
    if are_logits(output):
        root = output.softmax(1).sqrt()
        vector = root * signs - root.square() * (root * signs).sum(1, keepdim=True)
        return vector.nan_to_num(0.0).div(2**0.5)
    over = tuple(range(1, output.ndim)) or None  # of each image by itself
    size = torch.linalg.vector_norm(output.nan_to_num(0.0, 0.0, 0.0), dim=over, keepdim=True)
    return signs.div(size.clamp(min=torch.finfo(output.dtype).tiny))


class _Probes:
    """Computes nodes as ever, and keeps what they read of the tensors that are tried, to be differentiated by.

    Attributes:
        computes: node name -> how it is computed, for `run_alternatives`.
        values: tensor name and value, each value once, however many nodes read it.
    """

    def __init__(self, graph: fx.GraphModule, tried: Mapping[str, _Tried]) -> None:
        self.values: list[tuple[str, Tensor]] = []
        self._seen: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
        read: dict[fx.Node, dict[int, str]] = defaultdict(dict)  # node -> place -> tensor name
        for name, part in tried.items():
            for node, places in part.readers.items():
                read[node] |= dict.fromkeys(places, name)
        self.computes = {node.name: self._probing(_compute(graph, node), names) for node, names in read.items()}

    def _probing(self, compute: Compute, names: Mapping[int, str]) -> Compute:
        def probed(*args: Any, **kwargs: Any) -> Any:
            read = [self._probe(names[place], x) if place in names else x for place, x in enumerate(args)]
            return compute(*read, **kwargs)

        return probed

    def _probe(self, name: str, x: Tensor) -> Tensor:
        """Return a value to be read in the place of another, the same for all readers."""
        key = name, id(x)
        if key not in self._seen:
            probe = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
            self._seen[key] = x, probe  # with the value itself: what is gone gives its id to others
            self.values.append((name, probe))
        return self._seen[key][1]


def _readers(graph: fx.GraphModule, layout: Layout, tensor: RoundedTensor) -> dict[fx.Node, tuple[int, ...]]:
    """Return the nodes that read a tensor rounded, and at which places among their arguments.

    Those that only move or join values are none: who reads theirs, reads the tensor.
    """
    layers = {node: name for name, node in layer_nodes(graph).items() if name in layout.layers}
    readers: dict[fx.Node, tuple[int, ...]] = {}
    for node in graph.graph.nodes:
        row = find_operator(node)
        places: tuple[int, ...]
        if node in layers:
            places = (0,) if layout.layers[layers[node]] == tensor.name else ()
        elif row is not None and row.kind in KEEPS_GRID:
            places = ()
        else:
            rounded = tensor.members.intersection(layout.roundings.get(node.name, ()))
            arguments = enumerate(node.args)
            places = tuple(place for place, x in arguments if isinstance(x, fx.Node) and x.name in rounded)
        if places:
            readers[node] = places
    return readers


def _compute(graph: fx.GraphModule, node: fx.Node) -> Compute:
    compute: Compute = graph.get_submodule(str(node.target)) if node.op == "call_module" else node.target  # type: ignore[assignment]
    return compute
