"""A network as a .param file with a .bin file beside it: node by node, for one image."""

from collections.abc import Sequence
from pathlib import Path

from torch import fx
from torch.utils import _pytree as pytree

from repquant.atomic import replace_files
from repquant.errors import InputError
from repquant.export.file_batch import file_batch
from repquant.export.ncnn.clips import NO_LIMITS, clip_behind, limits_of
from repquant.export.ncnn.file_pair import FilePair
from repquant.export.ncnn.layers import write_layer
from repquant.export.ncnn.operators import OPERATORS, write_clip
from repquant.export.ncnn.values import Scope, Value, Writer, sizes_of
from repquant.export.refusals import unwritable
from repquant.graph.interface import input_names, output_names
from repquant.graph.operators import Kind, find_operator, holds_floats
from repquant.simulation.layers import FakeQuantize, QuantizedMatmul
from repquant.targets.ncnn_file import numbers_of


def export_ncnn(
    graph: fx.GraphModule,
    path: Path,
    *,
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
    batch: int | None = None,
) -> int:
    """Write a captured network for ncnn, and return the size of both files in bytes.

    Both appear only when both are complete. The one with the layers says which numbers belong to it.

    Args:
        graph: from `capture`, or simulated for the target `ncnn`, on the CPU.
        path: of the .param file; the .bin file with the numbers is written beside it.
        inputs: names of the inputs, in their order; those of the module's arguments by default.
        outputs: names of the outputs; the keys of a returned dict by default, else `output`.
        batch: 1 or None: files for ncnn hold one image.

    Raises:
        InputError: an operator that the files can't hold, another batch, names with spaces, a .bin file that is not of
            an earlier call, or a folder that can't be written.
    """
    if file_batch(graph, batch) != 1:
        raise InputError("files for ncnn hold one image; leave out `batch`, or give an example of one image")
    inputs, outputs = inputs or input_names(graph), outputs or output_names(graph)
    if wrong := [name for name in (*inputs, *outputs) if len(name.split()) != 1]:
        raise InputError(f"the name {wrong[0]!r} was given; names in files for ncnn have no spaces")
    beside = numbers_of(path)
    if beside.exists() and not path.exists():
        raise InputError(f"{beside} exists and belongs to no .param file; it is not replaced: choose another name")
    text, numbers = ncnn_content(graph, inputs, outputs)
    with replace_files(path, beside) as (layers, weights):  # the first one says which numbers it needs
        layers.write_text(text, encoding="utf-8")
        weights.write_bytes(numbers)
    return len(text.encode()) + len(numbers)


def ncnn_content(graph: fx.GraphModule, inputs: Sequence[str], outputs: Sequence[str]) -> tuple[str, bytes]:
    """Return the text and the numbers of a network; see `export_ncnn`."""
    scope = Scope(graph=graph, writer=Writer(FilePair(reserved=(*inputs, *outputs))), values={})
    names = iter(inputs)
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            scope.values[node] = _write_input(scope, node, next(names))
        elif node.op not in ("output", "get_attr") and node not in scope.values and holds_floats(node):
            _write(scope, node)
    results = [node for node in pytree.tree_leaves(graph.graph.output_node().args) if isinstance(node, fx.Node)]
    returned = [(name, _returned(scope, node)) for name, node in zip(outputs, results, strict=True)]
    return scope.writer.file.content(returned)


def _write(scope: Scope, node: fx.Node) -> None:
    """Write a node, and the clip behind a layer where nobody else reads that."""
    module = scope.graph.get_submodule(str(node.target)) if node.op == "call_module" else None
    row = find_operator(node)
    if isinstance(module, FakeQuantize):
        (value,) = scope.operands(node)
        scope.values[node] = scope.writer.on_grid(value, module)
    elif module is not None and not isinstance(module, QuantizedMatmul):
        clip = clip_behind(node)
        scope.values[node] = write_layer(scope, node, NO_LIMITS if clip is None else limits_of(clip))
        if clip is not None:
            scope.values[clip] = scope.values[node]
    elif row is not None and row.kind is Kind.CLIP:
        scope.values[node] = write_clip(scope, node)
    elif node.target in OPERATORS:
        scope.values[node] = OPERATORS[node.target](scope, node)
    else:
        raise unwritable(node, "it is not among the operators that are written to files for ncnn")


def _write_input(scope: Scope, node: fx.Node, name: str) -> Value:
    if not holds_floats(node):
        raise InputError(
            f"input {name} holds {node.meta['val'].dtype}; files for ncnn are written for inputs of floats"
        )
    sizes = sizes_of(node)
    scope.writer.file.add_input(name, sizes)
    return Value(name, sizes)


def _returned(scope: Scope, node: fx.Node) -> str:
    if node not in scope.values:
        raise unwritable(node, "it gives no floats")
    return scope.writer.as_float(scope.values[node]).blob
