"""What post-training quantization does beside finding ranges.

Nothing heavy is imported here: the command line takes its options from these dataclasses.
"""

from dataclasses import dataclass, field
from typing import Literal

from repquant.choices import Equalization, Granularity, Identity, Rounding, Shortcut, WeightRanges
from repquant.numerics.rounding_options import RoundingOptions
from repquant.option_ranges import SEED, check_ranges, option


@dataclass(frozen=True, kw_only=True)
class ReconstructionOptions(RoundingOptions):
    """How a network is reconstructed: `RoundingOptions`, and these.

    Args:
        granularity: where the error is measured: "layer", at the output of the convolution or linear layer, or "block",
            behind the ReLU that directly follows it or the addition of its output to a value that is known by then.
            Layers that nothing of this kind follows are measured at their own output in both cases.
        seed: of the batches.

    Raises:
        InputError: a value out of range.
    """

    granularity: Granularity = option("learned rounding: where the error is measured", "layer")
    seed: int = option("learned rounding: seed of the batches", 0, SEED)


@dataclass(frozen=True, kw_only=True)
class PtqMethod:
    """What is done beside finding ranges.

    Attributes:
        equalization: "noise", "ranges" or "none", see `methods.equalize`.
        identity: where the identity branches go, "fused" or a kind of shortcut, see `methods.identity`.
        weight_ranges: "max" or "mse", see `methods.weight_grids`; with fewer than 8 bits, rounding that looks at images
            clips where the outputs lose less, see `methods.kernel_rounding`.
        rounding: "feedback" (see `methods.feedback`), "learned" (see `methods.reconstruct`) or "nearest".
        reconstruction: how rounding is learned.

    Raises:
        InputError: a name that is not known.
    """

    equalization: Literal["none", Equalization] = option(
        "scale channels before rounding, by a model of the noise or to equal ranges", "noise"
    )
    identity: Identity = option(
        "where identity branches go: fused (in the kernel) or a shortcut, of which residual is an addition", "fused"
    )
    weight_ranges: WeightRanges = option(
        "ranges of weights: max, or mse (least squared error without clipping the identity branch); with fewer than 8 "
        "bits, rounding for images searches from there on",
        "max",
    )
    rounding: Rounding = option(
        "feedback (for the inputs that a layer meets), learned (AdaRound; minutes) or nearest (with corrected biases)",
        "feedback",
    )
    reconstruction: ReconstructionOptions = field(default_factory=ReconstructionOptions)

    def __post_init__(self) -> None:
        """Refuse names that are not known."""
        check_ranges(self)

    @property
    def shortcut(self) -> Shortcut:
        """What equalization has to know about the identity branches."""
        if self.identity in ("fused", "residual"):
            return "residual" if self.identity == "residual" else "inside"
        return "apart"
