"""What the quantization-aware training of a RepVGG depends on, beyond that of any network.

Nothing heavy is imported here: the command line takes its options from this dataclass.
"""

from dataclasses import dataclass
from typing import Literal

from repquant.errors import InputError, given
from repquant.option_ranges import POSITIVE_COUNT, option
from repquant.qat.recipe import QatRecipe
from repquant.train.recipe import WARMUP

QatMethod = Literal["equivalent-kernel", "plain", "inserted-bn"]


@dataclass(frozen=True, kw_only=True)
class RepVGGQatRecipe(QatRecipe):
    """Quantization-aware training of a RepVGG, in all its settings; `QatRecipe` says what the others mean.

    Raises:
        InputError: a setting is out of its range.
    """

    method: QatMethod = option(
        "what trains: the branches through their equivalent-kernel, the plain deploy kernels, or kernels with "
        "inserted-bn",
        "equivalent-kernel",
    )
    teacher_arch: str = option('architecture of the teacher; "": that of the model', "")
    statistics: Literal["frozen", "refreshed"] = option(
        "equivalent-kernel: of the branches' normalizations, frozen or refreshed", "frozen"
    )
    refresh_steps: int = option("steps between two refreshments", 10, POSITIVE_COUNT)
    freeze_epochs: float = option("inserted-bn: epochs after which the statistics stay as they are", 0.5, WARMUP)

    def __post_init__(self) -> None:
        """Refuse what could not be trained with."""
        super().__post_init__()
        if self.teacher_arch and not self.teacher:
            raise InputError(f"{given('teacher_arch', self.teacher_arch)} has no checkpoint; pass `teacher` too")
        if self.statistics == "refreshed" and self.method != "equivalent-kernel":
            raise InputError(f'`statistics="refreshed"` is for `method="equivalent-kernel"`, and it is {self.method}')
        if self.refresh_steps != type(self).refresh_steps and self.statistics != "refreshed":
            raise InputError(f'`refresh_steps` is for `statistics="refreshed"`, and they are {self.statistics}')
        if self.freeze_epochs != type(self).freeze_epochs and self.method != "inserted-bn":
            raise InputError(f'`freeze_epochs` is for `method="inserted-bn"`, and it is {self.method}')

    @property
    def has_moving_statistics(self) -> bool:
        """Whether kernels follow statistics that move while the network trains."""
        return self.method == "inserted-bn" or self.statistics == "refreshed"
