"""How rounding is learned. Nothing heavy is imported here: the command line takes its options from this dataclass."""

from dataclasses import dataclass

from repquant.choices import RoundingLoss
from repquant.option_ranges import POSITIVE_COUNT, RATE, SHARE, check_ranges, option


@dataclass(frozen=True, kw_only=True)
class RoundingOptions:
    """How rounding is learned.

    Args:
        steps: optimizer steps for each layer.
        batch: rows (output positions) in a step.
        learning_rate: of Adam. Biases and gains move in units of the error that rounding to nearest makes.
        loss: "mse", the squared error, or "mae", the absolute error (RepAPQ).
        drop: probability that an element of the input is replaced by its float value (Wei et al., "QDrop", ICLR 2022,
            use 0.5).
        affine: learn a gain for each output channel too (RepAPQ); it folds into the scale of the channel's weights.

    Raises:
        InputError: a value out of range.
    """

    steps: int = option("learned rounding: steps a layer", 1000, POSITIVE_COUNT)
    batch: int = option("learned rounding: output positions a step", 256, POSITIVE_COUNT)
    learning_rate: float = option("learned rounding: of Adam", 0.08, RATE)
    loss: RoundingLoss = option("learned rounding: squared or absolute error (RepAPQ has mae)", "mse")
    drop: float = option("learned rounding: share of inputs left in float (QDrop has 0.5)", 0.0, SHARE)
    affine: bool = option("learned rounding: learn a gain for each output channel (RepAPQ)", False)

    def __post_init__(self) -> None:
        """Refuse what could not be learned with."""
        check_ranges(self)
