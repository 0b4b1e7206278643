"""The arguments of a node by their names in the operator's schema."""

from typing import Any

from torch import fx


def arguments(node: fx.Node) -> dict[str, Any]:
    """Return every argument of a call of an ATen operator by name, defaults included."""
    schema = node.target._schema  # type: ignore[union-attr]
    values = {argument.name: argument.default_value for argument in schema.arguments}
    values |= {argument.name: value for argument, value in zip(schema.arguments, node.args, strict=False)}
    return values | node.kwargs
