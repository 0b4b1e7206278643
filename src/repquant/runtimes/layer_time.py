"""How long each operator of a file takes, by an engine's own profiler."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median

INT8, REFORMAT, OTHER = "INT8", "reformat", "other"
"""Precisions besides those of floats, "FP32", "FP16" and "BF16"; the words that TensorRT's engines are read with."""


@dataclass(frozen=True, kw_only=True)
class LayerTime:
    """An operator as an engine runs it, and how long that takes.

    Attributes:
        name: of the node, as far as the engine keeps it.
        kind: the engine's name for the kernel.
        precision: in which it computes: "INT8", "FP32", "FP16" or "BF16"; "reformat" where it only changes the type
            or the memory layout, "other" where the engine does not say.
        milliseconds: of a run, the median of several.
    """

    name: str
    kind: str
    precision: str
    milliseconds: float

    @property
    def is_float(self) -> bool:
        """Whether it computes, and not in integers."""
        return self.precision not in (INT8, REFORMAT, OTHER)


def median_times(runs: Iterable[Sequence[LayerTime]]) -> tuple[LayerTime, ...]:
    """Return the operators of a run, which are the same in the same order in all of them, with their median times."""
    return tuple(
        replace(layers[0], milliseconds=median(layer.milliseconds for layer in layers))
        for layers in zip(*runs, strict=True)
    )
