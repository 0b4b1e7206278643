"""A module and an example in, a functional graph out; or an error that names the user's line."""

import copy
import inspect
import io
import logging
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.utils import _pytree as pytree

from repquant.errors import InputError
from repquant.graph.functional import functional_graph

Example = Tensor | tuple[Any, ...] | Mapping[str, Any]

# Generated code has no file.
_FOREIGN = (str(Path(torch.__file__).parent), str(Path(__file__).parent), "<")


def export_functional(module: nn.Module, example: Example) -> tuple[fx.GraphModule, bool]:
    """Export a module in evaluation mode; return the graph without in-place operators, and whether its batch is free.

    The graph takes and returns what the module does. The batch is dimension 0 of the inputs; it is fixed to the
    example's where the exporter can't leave it free. The module is not changed.

    Raises:
        InputError: the example doesn't fit the module, or the exporter can't follow it. The message names the line.
    """
    args, kwargs = _call(example)
    try:
        inputs = inspect.signature(module.forward).bind(*args, **kwargs).arguments
    except TypeError as error:
        raise InputError(
            f"the example doesn't fit {type(module).__name__}.forward{inspect.signature(module.forward)}: {error}; "
            "give a tensor, a tuple of the positional inputs or a dict of the keyword inputs"
        ) from error
    module = _evaluation_copy(module)
    found = _with_free_batch(module, args, kwargs, pytree.tree_map(_free_batch, inputs))
    has_free_batch = found is not None
    if found is None:
        try:
            found = _export(module, args, kwargs, None)
        except Exception as error:
            raise _explained(module, args, kwargs, error) from error
    program, exported = found
    signature = program.graph_signature
    if signature.buffers_to_mutate:
        names = ", ".join(sorted(signature.buffers_to_mutate.values()))
        raise InputError(
            f"{type(module).__name__} changes its buffers while it runs in evaluation mode: {names}; a deployed "
            "network keeps no state: return the new value as an output and take the old one as an input, or leave the "
            "update out"
        )
    return exported, has_free_batch


def _call(example: Example) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example, Tensor):
        return (example,), {}
    if isinstance(example, tuple):
        return example, {}
    if isinstance(example, Mapping):
        return (), dict(example)
    raise InputError(
        f"the example is a {type(example).__name__}; give a tensor, a tuple of the positional inputs or a dict of the "
        "keyword inputs"
    )


def _evaluation_copy(module: nn.Module) -> nn.Module:
    # A tensor that autograd computed (as the old weight_norm keeps one) can't be copied, only detached.
    values = [value for part in module.modules() for value in vars(part).values() if isinstance(value, Tensor)]
    memo: dict[int, Any] = {id(value): value.detach() for value in values if not value.is_leaf}
    try:
        return copy.deepcopy(module, memo).eval()
    except Exception as error:  # whatever the user's attributes raise
        raise InputError(
            f"{type(module).__name__} can't be copied: {_first_line(error)}; take what can't be copied (locks, open "
            "files, handles) out of the module's attributes"
        ) from error


def _without_batch_of_one(inputs: Any) -> Any:
    """Double the batch of an example of one image: the exporter takes a dimension of 1 for a constant."""
    tensors = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.ndim]
    if not tensors or tensors[0].shape[0] != 1:
        return inputs

    def doubled(leaf: Any) -> Any:
        is_batch = isinstance(leaf, Tensor) and leaf.ndim and leaf.shape[0] == 1
        return torch.cat([leaf, leaf]) if is_batch else leaf

    return pytree.tree_map(doubled, inputs)


def _free_batch(leaf: Any) -> Any:
    return {0: Dim.AUTO} if isinstance(leaf, Tensor) and leaf.ndim else None


def _export(module: nn.Module, args: Any, kwargs: Any, dynamic_shapes: Any) -> tuple[ExportedProgram, fx.GraphModule]:
    """Return the program, and its graph made functional."""
    with torch.no_grad(), _quiet():
        program = torch.export.export(module, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False)
        unlifted = program.module(check_guards=False)
        graph = functional_graph(unlifted.graph)
        if graph is None:
            program = program.run_decompositions({})  # decomposes nothing
            unlifted = program.module(check_guards=False)
            graph = unlifted.graph
    return program, fx.GraphModule(unlifted, graph)  # without the exporter's hooks


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the exporter warns, logs and prints about its own inside to itself; its errors say it again."""
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _with_free_batch(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any
) -> tuple[ExportedProgram, fx.GraphModule] | None:
    """Return the program that takes any batch size; None where the exporter can't leave it free."""
    free_args, free_kwargs = _without_batch_of_one((args, kwargs))
    try:
        program, exported = _export(module, free_args, free_kwargs, dynamic_shapes)
    except Exception:  # whatever it is, it may be the batch's fault: the caller tries a fixed one
        return None
    values = [node.meta.get("val") for node in program.graph.nodes if node.name in program.graph_signature.user_inputs]
    batches: list[Any] = [value.shape[0] for value in values if isinstance(value, Tensor) and value.ndim]
    # A dimension that the network's code turned out to need at its size is a symbol with a value.
    is_free = isinstance(batches[0], torch.SymInt) and batches[0].node.maybe_as_int() is None if batches else False
    return (program, exported) if is_free else None


def _explained(module: nn.Module, args: Any, kwargs: Any, error: Exception) -> InputError:
    name = type(module).__name__
    try:
        with torch.no_grad():
            module(*args, **kwargs)
    except InputError as told:  # a network that was read from a file names its own places
        return told
    except Exception as plain:
        return InputError(
            f"{name} can't be called with the example: {_place(plain)}{_first_line(plain)}; give an example that "
            "model(*example) accepts"
        )
    if isinstance(error, InputError):
        return error
    if isinstance(error, GuardOnDataDependentSymNode) or "data-dependent" in str(error):
        advice = (
            "what happens there depends on the values of a tensor: use tensor operations, torch.where or torch.cond, "
            "or capture the parts of the network before and after it"
        )
    elif "register a pytree" in str(error):
        advice = "register the class with torch.export.register_dataclass, or return a tuple or a dict"
    else:
        advice = "rewrite this line with tensor operations, or capture the part of the network that has none of it"
    return InputError(f"{name} can't be captured: {_place(error)}{_first_line(error)}; {advice}")


def _place(error: BaseException) -> str:
    """Return `file:line, in function, "source": ` of the innermost frame that is the user's; empty if there is none."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(_FOREIGN)]
    if not frames:
        return ""
    frame = frames[-1]
    return f'{frame.filename}:{frame.lineno}, in {frame.name}, "{frame.line}": '


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].partition('. ')[0].rstrip('.')}" if lines else type(error).__name__
