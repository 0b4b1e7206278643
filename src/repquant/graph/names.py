"""Dotted names of what a graph holds: layers, constants, bodies of control flow."""

from typing import Any

from torch import Tensor, nn


def place(root: nn.Module, path: str, value: nn.Module | Tensor) -> str:
    """Register a module, a parameter or a buffer at a dotted path, or at the next free one; return the path it got."""
    name = free_name(root, path)
    parent = root
    *containers, leaf = name.split(".")
    for part in containers:
        if not isinstance(getattr(parent, part, None), nn.Module):
            parent.add_module(part, nn.Module())
        parent = parent.get_submodule(part)
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        parent.register_buffer(leaf, value)
    else:
        setattr(parent, leaf, value)
    return name


def free_name(root: nn.Module, path: str) -> str:
    """Return the first of `path`, `path_1`, `path_2` ... that names nothing in `root`."""
    name, count = path, 0
    while _holds(root, name):
        count += 1
        name = f"{path}_{count}"
    return name


def _holds(root: nn.Module, name: str) -> bool:
    value: Any = root
    for part in name.split("."):
        if not hasattr(value, part):
            return False
        value = getattr(value, part)
    return True
