"""Places of a captured network whose values a loss reads."""

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, fx, nn

from repquant.graph.names import free_name

aten = torch.ops.aten


class Taps:
    """Modules that let the values of nodes pass, so that hooks can see them, also inside what wraps the network.

    Args:
        network: it gets the modules, in place, without parameters or buffers.
        nodes: names of nodes.
    """

    def __init__(self, network: fx.GraphModule, nodes: Collection[str]) -> None:
        self._taps: dict[str, nn.Module] = {}
        container = free_name(network, "taps")
        for node in [node for node in network.graph.nodes if node.name in nodes]:
            readers = list(node.users)
            self._taps[node.name] = nn.Identity()
            network.add_submodule(f"{container}.{node.name}", self._taps[node.name])
            with network.graph.inserting_after(node):
                tap = network.graph.call_module(f"{container}.{node.name}", (node,))
            tap.meta = {"val": node.meta["val"]}
            for reader in readers:
                reader.replace_input_with(node, tap)
                if reader.target is aten.relu_.default:  # it would overwrite what the loss reads
                    reader.target = aten.relu.default
        network.recompile()

    @contextmanager
    def values(self) -> Iterator[dict[str, Tensor]]:
        """Give a dictionary that the next forward pass fills: node name -> value."""
        values: dict[str, Tensor] = {}
        with ExitStack() as hooks:
            for name, tap in self._taps.items():
                hooks.callback(tap.register_forward_hook(_keep(name, values)).remove)
            yield values


def _keep(name: str, values: dict[str, Tensor]) -> Callable[[nn.Module, object, Tensor], None]:
    def keep(_tap: nn.Module, _inputs: object, value: Tensor) -> None:
        values[name] = value

    return keep
