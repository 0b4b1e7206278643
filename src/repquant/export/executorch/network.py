"""A network as a .pte file, which was run once before it is kept."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from repquant.atomic import replace_file
from repquant.errors import InputError
from repquant.export.executorch.decomposed import decomposed
from repquant.export.executorch.lowering import lowered
from repquant.export.file_batch import file_batch
from repquant.export.refusals import unwritable
from repquant.graph.devices import example_on, on_device
from repquant.graph.interface import captured_of, flat_example, input_names, output_names
from repquant.graph.operators import aten
from repquant.graph.run import run
from repquant.targets.executorch_file import FORWARD, Ends, importing

_MOST_DIFFERENCE = 0.2
"""Of the largest output: far above what a rounding border moves, and below what another computation gives."""


def export_executorch(
    graph: fx.GraphModule,
    path: Path,
    *,
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
    batch: int | None = None,
) -> int:
    """Write a captured network to `path` for ExecuTorch, and return its size in bytes.

    What XNNPACK knows is its part of the file, the rest runs in ExecuTorch's own kernels. The file is run once on the
    example of the capture.

    Args:
        graph: from `capture`, or simulated with signed or unsigned activations of 8 bits, on the CPU.
        path: file to write; it appears only when it is complete.
        inputs: names of the inputs, in their order; those of the module's arguments by default.
        outputs: names of the outputs; the keys of a returned dict by default, else `output`.
        batch: number of images that the file takes; None for one, where the capture left that open.

    Raises:
        InputError: an operator that ExecuTorch has no form for or computes otherwise, a batch that is none or not that
            of the capture, ExecuTorch is not installed, or a folder that can't be written.
    """
    images = file_batch(graph, batch)
    _refuse(graph)
    ends = Ends(
        inputs=tuple(inputs) or tuple(input_names(graph)),
        outputs=tuple(outputs) or tuple(output_names(graph)),
        one_image=images == 1 and _is_along_batch(graph),
    )
    cpu = torch.device("cpu")
    example = example_on(_example(graph, images), cpu)
    network = decomposed(on_device(graph, cpu))
    content = lowered(network, example, ends)
    _require_same(content, graph, example)
    with replace_file(path) as temporary:
        temporary.write_bytes(content)
    return len(content)


def _refuse(graph: fx.GraphModule) -> None:
    """Refuse what ExecuTorch lowers, and its kernels then do not take."""
    for node in graph.graph.nodes:
        layer = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
        is_3d = isinstance(layer, nn.Conv3d | nn.ConvTranspose3d)
        if is_3d or node.target in (aten.conv3d.default, aten.conv_transpose3d.input):
            raise unwritable(node, "ExecuTorch has no kernel for 3-d convolutions")


def _is_along_batch(graph: fx.GraphModule) -> bool:
    """Whether the first axis of every input and output is the batch."""
    results = [node for node in pytree.tree_leaves(graph.graph.output_node().args) if isinstance(node, fx.Node)]
    ends = [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]
    ends += [node.meta["val"] for node in results]
    return all(value.ndim > 0 and isinstance(value.shape[0], torch.SymInt) for value in ends)


def _example(graph: fx.GraphModule, images: int) -> tuple[Tensor, ...]:
    """Return the inputs of the capture for a number of images, repeated where there are fewer."""
    inputs = flat_example(graph)
    if not captured_of(graph).dynamic_batch:
        return inputs
    return tuple(x[torch.arange(images) % len(x)].contiguous() for x in inputs)


def _require_same(content: bytes, graph: fx.GraphModule, example: tuple[Tensor, ...]) -> None:
    """Accept a file that runs and gives what the network gives."""
    with importing():
        from executorch.runtime import Runtime
    try:
        method = Runtime.get().load_program(content).load_method(FORWARD)
        assert method is not None
        given = method.execute(example)
    except RuntimeError as error:
        raise InputError(
            f"ExecuTorch wrote a file that it does not run: {error}; its messages name the operator"
        ) from error
    with torch.inference_mode():
        expected = run(graph, example)
    for name, value, wanted in zip(output_names(graph), given, expected, strict=True):
        difference = float((value - wanted).abs().max()) if value.shape == wanted.shape else math.inf
        if not difference <= _MOST_DIFFERENCE * float(wanted.abs().max()):
            raise InputError(
                f"ExecuTorch computes output {name} otherwise than the network: {difference:.3g} away where the "
                f"largest is {float(wanted.abs().max()):.3g}; leave the operators that do not run in integers to the "
                "program that calls the file"
            )
