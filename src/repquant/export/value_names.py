"""The names that inputs and outputs of a file are given, whatever the values inside are called."""

from collections.abc import Sequence

import onnx
from onnx import helper


def name_ends(model: onnx.ModelProto, inputs: Sequence[str], outputs: Sequence[str]) -> onnx.ModelProto:
    """Return a copy whose inputs and outputs have these names, in order.

    A value inside that has one of them already gets another: the exporter calls values after operators, such as
    `linear`, and a user's dict may have the same key. A value that is given out twice, or as it came in, is copied.
    """
    model = onnx.ModelProto.FromString(model.SerializeToString())
    graph = model.graph
    _separate(graph)
    ends = {info.name: name for info, name in zip((*graph.input, *graph.output), (*inputs, *outputs), strict=True)}
    named = (*graph.initializer, *graph.value_info, *graph.input, *graph.output)
    taken = {value.name for value in named} | {name for node in graph.node for name in node.output} | {*ends.values()}
    renamed = dict(ends)
    for name in set(ends.values()) - set(ends):
        fresh = f"{name}_inside"
        while fresh in taken:
            fresh += "_"
        renamed[name] = fresh
    for value in named:
        value.name = renamed.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    return model


def _separate(graph: onnx.GraphProto) -> None:
    """Give each end of a graph a value of its own, in place."""
    seen = {info.name for info in graph.input}
    for index, info in enumerate(graph.output):
        if info.name in seen:
            copy = f"_copy_{index}_{info.name}"
            graph.node.append(helper.make_node("Identity", [info.name], [copy], name=copy))
            info.name = copy
        seen.add(info.name)
