"""Learned rounding on captured networks: a stand-in with the options and the calls of what is to come."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from torch import fx

from repquant.errors import InputError
from repquant.graph.plan import Plan
from repquant.graph.run import Batch
from repquant.methods.rounded import Rounded
from repquant.numerics.adaround import RoundingOptions

Granularity = Literal["layer", "block"]


@dataclass(frozen=True, kw_only=True)
class ReconstructionOptions(RoundingOptions):
    """How a network is reconstructed: `RoundingOptions`, and these."""

    granularity: Granularity = "layer"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.granularity not in get_args(Granularity):
            raise InputError(
                f"unknown granularity {self.granularity!r} of the reconstruction; allowed are layer, block"
            )


def reconstruct(
    graph: fx.GraphModule,
    plan: Plan,
    batches: Iterable[Batch],
    options: ReconstructionOptions,
    *,
    on_step: Callable[[int], None] = lambda _: None,
    checkpoint: Path | None = None,
) -> Rounded:
    """Refuse: it is not here yet."""
    raise NotImplementedError


def check_checkpoint(
    graph: fx.GraphModule, plan: Plan, batches: Iterable[Batch], options: ReconstructionOptions, checkpoint: Path
) -> None:
    """Refuse: it is not here yet."""
    raise NotImplementedError
