"""The error for what a file can't hold."""

from torch import fx

from repquant.errors import InputError


def unwritable(node: fx.Node, why: str) -> InputError:
    """Return the error for an operator that the file can't hold."""
    modules = [name for name, _ in node.meta.get("nn_module_stack", {}).values() if name]
    where = f" in {modules[-1]}" if modules else ""
    return InputError(
        f"{node.name}{where} ({node.target}): {why}; write it with other operators, or leave this part of the network "
        "to the program that calls it"
    )
