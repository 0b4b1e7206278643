"""How much of the noise at a node of a captured network reaches its outputs.

For noise of power 1 in every value of a node, independent of each other, the power at the output is the sum of the
squared entries of the Jacobian J. With random vectors v of mean 0 and covariance 1 it is the expectation of the squared
entries of J^T v, which one pass backward gives for all nodes (Hutchinson, "A Stochastic Estimator of the Trace of the
Influence Matrix", 1989). So gains are known for every operator that autograd knows.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from repquant.graph.batches import single_images
from repquant.graph.copies import copy_graph
from repquant.graph.run import Observer, run

_SEED = 0


@torch.enable_grad()
def output_gains(
    graph: fx.GraphModule, images: Sequence[Tensor], shapes: Mapping[str, Sequence[int]], vectors: int = 2
) -> dict[str, Tensor]:
    """Return the gains from nodes to the outputs of a network, float64 on the CPU, in the shape asked for.

    Noise at several outputs is reckoned in units of each output's power. Memory holds one image, or the batch that the
    network was captured for; the random vectors are the same in every call.

    Args:
        graph: from `capture`; it is not changed.
        images: the input tensors of a batch.
        shapes: node name -> a shape that broadcasts to the node's value; gains are summed over dimensions of size 1.
        vectors: how many random vectors an image gets.
    """
    frozen = copy_graph(graph).requires_grad_(False)
    generator = torch.Generator().manual_seed(_SEED)
    gains = {name: torch.zeros(tuple(shape), dtype=torch.float64) for name, shape in shapes.items()}
    for inputs in single_images(graph, images):
        leaves = [tensor.requires_grad_() for tensor in inputs if tensor.is_floating_point()]
        outputs = run(frozen, inputs, {name: _recorder(gain) for name, gain in gains.items()})
        outputs = tuple(output for output in outputs if output.requires_grad)
        for index in range(vectors if outputs else 0):
            torch.autograd.grad(
                outputs,
                leaves,
                [_direction(output, generator) for output in outputs],
                retain_graph=index + 1 < vectors,
                allow_unused=True,
            )
    return {name: gain / (vectors * len(images[0])) for name, gain in gains.items()}


def _recorder(total: Tensor) -> Observer:
    def record(value: Any) -> None:
        if isinstance(value, Tensor) and value.requires_grad:
            value.register_hook(add)

    def add(gradient: Tensor) -> None:
        total.add_(gradient.double().square().sum_to_size(total.shape).cpu())

    return record


def _direction(output: Tensor, generator: torch.Generator) -> Tensor:
    power = output.detach().square().mean().sqrt().clamp(min=torch.finfo(output.dtype).tiny)
    return torch.randn(output.shape, generator=generator, dtype=output.dtype).to(output.device) / power
