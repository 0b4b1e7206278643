"""Parts of a concatenation that are again what was concatenated, taken from there.

Heads of detectors join boxes and scores, then levels, and split boxes from scores again. Left as it is, the join would
put boxes and scores on one grid.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from repquant.graph.arguments import arguments

aten = torch.ops.aten

_SPLITS = {aten.split_with_sizes.default, aten.split.Tensor, aten.chunk.default, aten.unsafe_chunk.default}
_RESHAPES = {aten.reshape.default, aten.view.default, aten.flatten.using_ints}


@dataclass(frozen=True)
class _Part:
    """What lies from `start` to `stop` along a dimension of a tensor."""

    source: fx.Node
    dim: int
    start: int
    stop: int

    @property
    def is_empty(self) -> bool:
        return self.start >= self.stop

    @property
    def is_whole(self) -> bool:
        return self.start == 0 and self.stop == self.source.meta["val"].shape[self.dim]

    def of(self, source: fx.Node, offset: int = 0) -> "_Part":
        """Return the same range of another tensor, which begins at `offset`, as far as it reaches."""
        size = source.meta["val"].shape[self.dim]
        return _Part(source, self.dim, max(self.start - offset, 0), min(self.stop - offset, size))


def part_joins(graph: fx.Graph) -> None:
    """Let those who read a part of a concatenation read what was concatenated, in place, where parts are whole."""
    for node in list(graph.nodes):
        part = _read_by(node)
        if part is not None and not part.is_whole and not part.is_empty:
            with graph.inserting_before(node):
                found = _found(graph, part)
            if found is not None:
                node.replace_all_uses_with(found)


def _read_by(node: fx.Node) -> _Part | None:
    """Return the part that a slice, or an item of a split, takes of a tensor."""
    if node.op != "call_function" or not isinstance(node.meta.get("val"), Tensor) or not node.args:
        return None
    source = node.args[0]
    if not isinstance(source, fx.Node):
        return None
    if node.target is aten.slice.Tensor:
        values = arguments(node)
        dim, start = values["dim"] % node.meta["val"].ndim, values["start"] or 0
        size, length = source.meta["val"].shape[dim], node.meta["val"].shape[dim]
        if values["step"] != 1 or not all(isinstance(value, int) for value in (start, size, length)):
            return None
        begin = max(start + size, 0) if start < 0 else start
        return _Part(source, dim, begin, begin + length)
    if source.target in _SPLITS:
        values, pieces = arguments(source), source.meta["val"]
        dim, index = values["dim"] % node.meta["val"].ndim, int(node.args[1])  # type: ignore[arg-type]
        sizes = [piece.shape[dim] for piece in pieces]
        if not all(isinstance(size, int) for size in sizes):
            return None
        index %= len(sizes)
        return _Part(values["self"], dim, sum(sizes[:index]), sum(sizes[: index + 1]))
    return None


def _found(graph: fx.Graph, part: _Part) -> fx.Node | None:
    """Return a node that gives the part without a slice; None where it is no whole tensor behind joins."""
    source, dim = part.source, part.dim
    if part.is_whole:
        return source
    if source.target is aten.cat.default:
        values = arguments(source)
        joined, pieces = values["dim"] % source.meta["val"].ndim, list(values["tensors"])
        if any(piece.meta["val"].ndim != source.meta["val"].ndim for piece in pieces):
            return None  # torch also takes empty rows, whatever the shape of the others
        chosen = [_found(graph, piece) for piece in (_chosen(part, pieces) if joined == dim else map(part.of, pieces))]
        if not chosen or None in chosen:
            return None
        if len(chosen) == 1:
            return chosen[0]
        return _like(source, graph.call_function(source.target, (chosen, joined)), part)
    if source.target in _RESHAPES and _keeps(source, dim):
        inner = _found(graph, part.of(source.args[0]))  # type: ignore[arg-type]
        if inner is None:
            return None
        rest = list(source.args[1:])
        if source.target is not aten.flatten.using_ints:
            sizes = list(rest[0])  # type: ignore[arg-type]
            sizes[dim] = part.stop - part.start
            rest[0] = sizes
        return _like(source, graph.call_function(source.target, (inner, *rest)), part)
    return None


def _chosen(part: _Part, pieces: list[fx.Node]) -> list[_Part]:
    """Return the parts of joined tensors that make up a part of the whole along the same dimension."""
    offset, chosen = 0, []
    for piece in pieces:
        own = part.of(piece, offset)
        if not own.is_empty:
            chosen.append(own)
        offset += piece.meta["val"].shape[part.dim]
    return chosen


def _keeps(reshape: fx.Node, dim: int) -> bool:
    """Whether a reshape leaves a dimension and all in front of it as they are."""
    before, after = reshape.args[0].meta["val"].shape, reshape.meta["val"].shape  # type: ignore[union-attr]
    is_same = (statically_known_true(a == b) for a, b in zip(before[: dim + 1], after[: dim + 1], strict=False))
    return len(before) > dim and len(after) > dim and all(is_same)


def _like(source: fx.Node, node: fx.Node, part: _Part) -> fx.Node:
    value = source.meta["val"].narrow(part.dim, part.start, part.stop - part.start)
    node.meta = source.meta | {"val": value}
    return node
