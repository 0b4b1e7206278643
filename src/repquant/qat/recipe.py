"""What quantization-aware training depends on, beyond what any training does.

Nothing heavy is imported here: the command line takes its options from this dataclass.
"""

from dataclasses import dataclass, replace
from typing import Literal, Self

from repquant.choices import WeightScales
from repquant.errors import InputError
from repquant.option_ranges import EPOCHS, SHARE, Numbers, option
from repquant.train.recipe import DECAY, TRAINING_BATCH, WARMUP, WEIGHT, Augmentation, Optimizer, Recipe

UNUSED = {
    "model": "",
    "compile": False,
    "custom_l2": False,
    "auxiliary_weight": 0.1,
    "init_weights": "",
    "freeze_stages": 0,
    "ema_decay": 0.0,
}
"""Options of `Recipe` that mean nothing here, and the values with which they say so. (An average of weights is on no
grid that training has seen.)"""


@dataclass(frozen=True, kw_only=True)
class QatRecipe(Recipe):
    """Quantization-aware training, in all its settings; `Recipe` says what the others mean.

    Raises:
        InputError: a setting is out of its range.
    """

    epochs: int = option("passes over the training images", 1, EPOCHS)
    batch_size: int = option("images a step, over all processes and accumulation steps together", 64, TRAINING_BATCH)
    optimizer: Optimizer = option("what takes the steps", "adamw")
    learning_rate: float = option(
        "peak; it falls to 0 along a cosine. With adamw in steps of each kernel's grid, so that it suits all bits. 0: "
        "1.4 / training steps, at most 0.01 (adamw), or 0.001 (sgd)",
        0.0,
        Numbers(0, 1000),
    )
    warmup_epochs: float = option("epochs in which the learning rate rises linearly to its peak", 0.0, WARMUP)
    weight_decay: float = option(
        "weight decay of kernels; scales, biases and batch normalization have none", 0.0, WEIGHT
    )
    label_smoothing: float = option("share of the target that is spread evenly over all classes", 0.0, DECAY)
    augmentation: Augmentation = option(
        "of training images, beside flips; center-crop is what evaluation sees", "center-crop"
    )
    weight_scales: Literal["auto", WeightScales] = option(
        "of kernels: fixed as at the start, learned (LSQ), max at each step, or auto: max where kernels follow moving "
        "statistics, else fixed",
        "auto",
    )
    activation_scales: Literal["learned", "fixed"] = option(
        "of activations: learned (LSQ), or fixed as calibrated", "learned"
    )
    scale_rate: float = option("learning rate of scales, as a factor on that of the kernels", 1.0, WEIGHT)
    distillation: float = option(
        "share of the loss that pulls the logits to the float model's; the rest labels", 1.0, SHARE
    )
    temperature: float = option("of distillation", 1.0, Numbers(0.01, 1000))
    block_distillation: float = option(
        "weight of the relative squared error of the blocks' outputs to float", 0.0, WEIGHT
    )
    teacher: str = option('checkpoint to distill from, of the same classes; "": the model before quantization', "")
    gradual_epochs: float = option("epochs in which rounding spreads from first layer to last; 0: at once", 0.0, WARMUP)

    def __post_init__(self) -> None:
        """Refuse what could not be trained with."""
        super().__post_init__()
        for name, unused in UNUSED.items():
            self._require(getattr(self, name) == unused, name, f"{unused!r}: it is an option of float training")
        if self.teacher and self.distillation == 0 and self.block_distillation == 0:
            raise InputError("`teacher` was given, and nothing is distilled; raise `distillation`")
        self._require(
            self.gradual_epochs <= self.epochs / 2, "gradual_epochs", f"at most {self.epochs / 2}, half of the epochs"
        )
        self._require(self.precision == "float32", "precision", "float32: under autocast, rounded values are not exact")

    def with_learning_rate(self, steps: int) -> Self:
        """Return the recipe with a learning rate for so many steps in place of 0.

        Along a cosine the steps add up to half of the peak times their number: 0.7 steps of each kernel's grid, which
        is enough for weights to reach the integer beside theirs (docs/concepts/inside-qat.md).
        """
        if self.learning_rate:
            return self
        return replace(self, learning_rate=min(1.4 / steps, 1e-2) if self.optimizer == "adamw" else 1e-3)

    @property
    def resolved_weight_scales(self) -> WeightScales:
        """Where the scales of kernels come from, "auto" resolved."""
        if self.weight_scales != "auto":
            return self.weight_scales
        return "max" if self.has_moving_statistics else "fixed"

    @property
    def has_moving_statistics(self) -> bool:
        """Whether kernels follow statistics that move while the network trains."""
        return False
