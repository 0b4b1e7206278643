"""Methods that change a layer for one place in the network refuse layers that are in two."""

from collections.abc import Mapping

from torch import nn

from repquant.errors import InputError


def refuse_second_use(name: str, seen: Mapping[str, object], remedy: str) -> None:
    """Refuse a layer that is called although it has been called before.

    Args:
        name: of the layer.
        seen: whatever is kept of the layers that were called, by name.
        remedy: what to do instead.

    Raises:
        InputError: `name` is in `seen`.
    """
    if name in seen:
        raise InputError(f"layer {name} is used more than once, and each use would need its own values; {remedy}")


def refuse_shared_parameters(modules: Mapping[str, nn.Module], remedy: str) -> None:
    """Refuse a parameter that belongs to two modules: changed for one of them, it would change in the other.

    Args:
        modules: by name.
        remedy: what to do instead.

    Raises:
        InputError: two of them have a parameter in common; both are named.
    """
    owners: dict[int, str] = {}
    for name, module in modules.items():
        for parameter_name, parameter in module.named_parameters():
            owner = owners.setdefault(id(parameter), name)
            if owner != name:
                raise InputError(f"layers {owner} and {name} share their {parameter_name}; {remedy}")
