"""A float ONNX file in, a module of torch out."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repquant.errors import InputError, shortened

if TYPE_CHECKING:
    from torch import Tensor, nn

    from repquant.reader.network import OnnxNetwork
    from repquant.targets.onnx_graph import OnnxGraph

_LARGEST_DIFFERENCE = 1e-3  # as a share of the largest value of an output


def read_onnx(path: str | PathLike[str], *, example: Any = None) -> nn.Module:
    """Return a float ONNX file as a module: every function that takes a network takes it.

    It has the inputs of the file, by place or by name, and returns its output, or a dict of outputs by name where there
    are several. Layers have the names that the file gives them. It takes any batch; a file that was exported for one
    size does too, unless it computes with that size.

    Where ONNX Runtime is installed, both are run once and their outputs compared; of those that follow from
    a selection (ArgMax, TopK) what it selects from, since a difference in the last digit swaps what is selected.

    Args:
        path: an .onnx file of opset 13 to 22 in float32, with the files beside it that hold its tensors.
        example: inputs to compare on, a tensor, a tuple of the inputs or a dict of them by name. By default random
            ones; a size that the file leaves open is 64 then, and where ONNX Runtime can't run that, nothing is
            compared.

    Raises:
        InputError: no such file, no ONNX file, one that is quantized already, or of another opset or type; operators
            that can't be read, control flow among them; or other outputs than in ONNX Runtime.
    """
    from repquant.reader.batch import network_of
    from repquant.reader.file import read_float_graph
    from repquant.runtimes.available import installed

    file = Path(path)
    graph = read_float_graph(file)
    try:
        network = network_of(graph)
        inputs = _inputs(network, graph, example)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    if "onnxruntime" in installed():
        _require_equal(file, network, graph, inputs, is_given=example is not None)
    return network


def _inputs(network: OnnxNetwork, graph: OnnxGraph, example: Any) -> Mapping[str, Tensor]:
    """Return the inputs to compare on by name, as many as the file takes at once."""
    import torch
    from torch import Tensor

    from repquant.reader.batch import fixed_batch, random_inputs
    from repquant.reader.names import identifiers

    names, batch = network.program.inputs, fixed_batch(graph)
    keys = identifiers(names)
    if example is None:
        return random_inputs(graph, batch or 2)
    if isinstance(example, Mapping):
        given = [example.get(name, example.get(keys[name])) for name in names]
    else:
        given = [example] if isinstance(example, Tensor) else list(example)
    if len(given) != len(names) or any(value is None for value in given):
        raise InputError(f"`example` doesn't fit the inputs of the file, {', '.join(names)}; give one of each")
    tensors: list[Tensor] = given
    return {
        name: value if batch is None else torch.cat([value] * batch)[:batch]
        for name, value in zip(names, tensors, strict=True)
    }


def _require_equal(
    path: Path, network: OnnxNetwork, graph: OnnxGraph, inputs: Mapping[str, Tensor], *, is_given: bool
) -> None:
    import torch

    from repquant.reader.batch import differs, outputs_of
    from repquant.reader.limits import TooManyElementsError
    from repquant.reader.selections import comparable, file_giving, network_giving
    from repquant.runtimes.onnxruntime import OnnxRuntime

    names = comparable(graph, path)
    if not names:
        return
    given, failure = {}, None
    try:
        with torch.no_grad():
            given = outputs_of(network_giving(network, names), list(inputs.values()))
    except TooManyElementsError as error:  # before ONNX Runtime makes them
        raise InputError(f"{path}: {error}") from error
    except InputError as error:
        failure = error
    with tempfile.TemporaryDirectory() as folder:
        runtime = OnnxRuntime(file_giving(path, names, Path(folder)))
        try:
            expected = runtime.run({name: value.numpy() for name, value in inputs.items()})
        except InputError:
            if is_given:
                raise
            return
    if failure is not None:
        raise InputError(f"{path}: {failure}") from failure
    for name, value in given.items():
        difference = differs(torch.as_tensor(expected[name]), value)
        kind = "output" if name in network.program.outputs else "value"
        if not difference <= _LARGEST_DIFFERENCE:
            raise InputError(
                f"{path} was read, and then {kind} {shortened(name)} differs from that of ONNX Runtime by "
                f"{difference:.1e} of its largest value; please report this, and quantize the network in PyTorch"
            )
