"""Files for one size of batch, read as files for any where that changes nothing."""

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from onnx import ModelProto, TensorProto, numpy_helper
from torch import Tensor

from repquant.errors import InputError, shortened
from repquant.reader.file import inputs_of
from repquant.reader.limits import MOST_GIVEN, TooManyElementsError
from repquant.reader.names import free_name, names_in
from repquant.reader.network import OnnxNetwork, make_network
from repquant.targets.onnx_graph import OnnxGraph, graph_of

OPEN = 64
"""Stands for a size, other than the batch, that a file leaves open."""

_EQUAL = 1e-4  # of the largest value


def network_of(graph: OnnxGraph) -> OnnxNetwork:
    """Return the module for a graph; it takes any batch where the outputs for twice the file's batch prove it.

    Exporters write the batch that they saw into shapes: (1, 512) where the code said (-1, 512). Those that begin with
    it get that of the value in its place.
    """
    batch = fixed_batch(graph)
    if batch is None:
        return make_network(graph, None)
    network = make_network(_with_open_shapes(graph, batch), None)
    return network if _takes_twice(network, graph, batch) else make_network(graph, batch)


def fixed_batch(graph: OnnxGraph) -> int | None:
    """Return the batch that a file declares for its inputs; None where it is open, or they have several."""
    sizes = {next(iter(graph.shapes.get(value.name, ())), None) for value in inputs_of(graph)}
    size = next(iter(sizes)) if len(sizes) == 1 else None
    return size if isinstance(size, int) else None


def random_inputs(graph: OnnxGraph, batch: int, seed: int = 0) -> Mapping[str, Tensor]:
    """Return an input for each name: floats are normal numbers, integers and truth values are 1.

    Raises:
        InputError: an input without a shape, or one that is too large.
    """
    generator = torch.Generator().manual_seed(seed)
    inputs = {}
    for value in inputs_of(graph):
        shape = graph.shapes.get(value.name)
        if not shape:
            raise InputError(f"input {value.name} has no shape in the file")
        sizes = [batch, *(size if isinstance(size, int) else OPEN for size in shape[1:])]
        if math.prod(sizes) > MOST_GIVEN:
            raise TooManyElementsError(
                f"input {shortened(value.name)} has the sizes {sizes}; allowed are at most {MOST_GIVEN} elements"
            )
        kind = value.type.tensor_type.elem_type
        if kind == TensorProto.FLOAT:
            inputs[value.name] = torch.randn(sizes, generator=generator)
        else:
            whole = torch.ones(sizes, dtype=torch.int32 if kind == TensorProto.INT32 else torch.int64)
            inputs[value.name] = whole.bool() if kind == TensorProto.BOOL else whole
    return inputs


def _with_open_shapes(graph: OnnxGraph, batch: int) -> OnnxGraph:
    """Return a graph in which a shape that begins with the batch takes it from the value that is reshaped."""
    model = ModelProto()
    model.CopyFrom(graph.model)
    for node in model.graph.node:
        if node.op_type != "Reshape":
            continue
        shape = graph.array(node.input[1])
        before = graph.shapes.get(node.input[0], ())
        if shape is None or not shape.all() or list(shape[:1]) != [batch] or list(before[:1]) != [batch]:
            continue
        opened = shape.copy()
        opened[0] = 0
        del node.attribute[:]  # of which there is one, that takes a 0 for a size
        name = free_name(f"{node.output[0]}.shape", names_in(model))
        model.graph.initializer.append(numpy_helper.from_array(opened, name))
        node.input[1] = name
    return replace(graph_of(model), shapes=graph.shapes)


@torch.no_grad()
def _takes_twice(network: OnnxNetwork, graph: OnnxGraph, batch: int) -> bool:
    try:
        halves = [list(random_inputs(graph, batch, seed).values()) for seed in (0, 1)]
        together = outputs_of(network, [torch.cat(pair) for pair in zip(*halves, strict=True)])
        apart = [outputs_of(network, half) for half in halves]
        return all(
            differs(torch.cat([outputs[name] for outputs in apart]), value) < _EQUAL for name, value in together.items()
        )
    except TooManyElementsError:
        raise
    except (InputError, RuntimeError):
        return False


def outputs_of(network: OnnxNetwork, inputs: list[Tensor]) -> dict[str, Tensor]:
    """Return what a network gives, by the names of the outputs in the file."""
    given, names = network(*inputs), network.program.outputs
    if isinstance(given, Tensor):
        return {names[0]: given}
    return dict(zip(names, given.values(), strict=True))


@torch.no_grad()
def differs(expected: Tensor, given: Tensor) -> float:
    """Return the largest difference as a share of the largest expected value; infinity for other shapes."""
    if expected.shape != given.shape:
        return float("inf")
    if not expected.is_floating_point():
        return 0.0 if torch.equal(expected, given) else float("inf")
    largest = expected.abs().max() if expected.numel() else torch.ones(1)
    return float((expected - given).abs().max() / largest.clamp_min(1e-30)) if expected.numel() else 0.0
