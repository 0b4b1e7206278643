"""ExecuTorch's steps from a graph to the bytes of a file, with XNNPACK's parts in it."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx

from repquant.errors import InputError
from repquant.targets.executorch_file import METADATA, Ends, importing

_LOGGERS = ("executorch", "torch.export", "torch.fx", "torchao")


def lowered(graph: fx.GraphModule, example: tuple[Tensor, ...], ends: Ends) -> bytes:
    """Return the file of a network of functional operators, for inputs of the example's shapes.

    Args:
        graph: with the roundings as `quantized_decomposed` operators, see `decomposed`.
        example: its inputs.
        ends: noted in the file.

    Raises:
        InputError: an operator that ExecuTorch has no form for, or it is not installed.
    """
    with importing():
        from executorch.exir import to_edge_transform_and_lower
    with _quiet():
        called = {str(node.target) for node in graph.graph.nodes if node.op == "call_function"}
        try:
            program = torch.export.export(graph.eval(), example, strict=False)
            edge = to_edge_transform_and_lower(
                program, partitioner=[_partitioner()], constant_methods={METADATA: ends.text()}
            )
            return bytes(edge.to_executorch().buffer)
        except Exception as error:  # of whatever class its steps and those of torch raise
            raise InputError(_reason(error, called)) from error


def _partitioner() -> Any:
    """Return what chooses the operators for XNNPACK.

    It is ExecuTorch's own, but for what gives something else there than the operators say, or fails, in 1.5: a linear
    layer whose output is not rounded (its bias is taken for an integer), GELU by tanh (it is computed by erf), and exp
    (the channels of an image were taken for rows behind it).
    """
    with importing():
        from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS
        from executorch.backends.xnnpack.partition.config import gemm_configs as products
        from executorch.backends.xnnpack.partition.config import generic_node_configs as functions
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.backends.xnnpack.utils.quant_utils import is_dequant, is_quant

    class Linear(products.LinearConfig):
        """Linear layers, those with int8 weights in float arithmetic included: they have no bias."""

        def get_deps(self, node: fx.Node, ep: Any) -> tuple[bool, list[fx.Node]]:
            weight, users = node.all_input_nodes[1], list(node.users)
            if len(users) == 1 and any(clip in str(users[0].target) for clip in ("relu.default", "hardtanh.default")):
                users = list(users[0].users)
            if is_dequant(weight) and not (len(users) == 1 and is_quant(users[0])):
                return True, [weight, *weight.all_input_nodes]
            deps: tuple[bool, list[fx.Node]] = super().get_deps(node, ep)
            return deps

    class Gelu(functions.GeluConfig):
        """GELU by erf."""

        def check_constraints(self, node: fx.Node, ep: Any) -> bool:
            is_exact = node.kwargs.get("approximate", "none") == "none"
            return is_exact and bool(super().check_constraints(node, ep))

    replaced = {
        products.LinearConfig: Linear,
        products.AddmmConfig: None,
        products.MMConfig: None,
        functions.GeluConfig: Gelu,
        functions.ExpConfig: None,
    }
    configs = [replaced.get(config, config) for config in ALL_PARTITIONER_CONFIGS]
    return XnnpackPartitioner(configs=[config for config in configs if config is not None])


def _reason(error: Exception, called: set[str]) -> str:
    """Return the message for a network that ExecuTorch does not lower: the operators that it names, else all."""
    cause = error
    while cause.__cause__ is not None and isinstance(cause.__cause__, Exception):
        cause = cause.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(cause).__name__]
    named = sorted(name for name in called if name.removesuffix(".default").replace(".", "::", 1) in str(error))
    named = named or sorted(name for name in called if name in str(error))
    known = ("quantized_decomposed", "conv", "linear", "relu", "view", "reshape", "flatten", "add.", "mul.", "cat.")
    others = named or sorted(name for name in called if not any(word in name for word in known))
    return (
        f"ExecuTorch has no form for {', '.join(others) or 'this network'}: {lines[0]}; write it with other operators, "
        "or leave this part of the network to the program that calls it"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what torch and ExecuTorch say of their own inside."""
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
