"""What a training tells as it goes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What a person may want to see after a step.

    Attributes:
        step: steps done, this one included.
        images: trained on in this step, over all ranks.
        loss: of a step not long ago; None before the first was read.
        learning_rate: of this step.
        data_percent: share of the epoch's time, until now, that the loop waited for images.
    """

    step: int
    images: int
    loss: float | None
    learning_rate: float
    data_percent: float


@dataclass(frozen=True, kw_only=True)
class EpochReport:
    """What an epoch gave. Percentages run 0-100.

    Attributes:
        epoch: epochs done, this one included.
        learning_rate: of its last step.
        loss: mean cross-entropy with smoothed labels on the augmented images, as the weights changed.
        train_top1: accuracy on the same images in the same passes; of mixed ones, for the label with the largest share.
        val_top1: accuracy on the validation images of the weights at its end, or of their average.
        train_seconds: reading of the images included, validation not.
        images_per_second: of training, over all ranks.
        data_percent: share of `train_seconds` that the loop waited for images.
    """

    epoch: int
    learning_rate: float
    loss: float
    train_top1: float
    val_top1: float
    train_seconds: float
    images_per_second: float
    data_percent: float

    def line(self, epochs: int) -> str:
        """Say what it gave, of so many epochs."""
        return (
            f"epoch {self.epoch:>{len(str(epochs))}}/{epochs}: loss {self.loss:.4f}, train top-1 "
            f"{self.train_top1:.2f} %, val top-1 {self.val_top1:.2f} %, lr {self.learning_rate:.3g}, "
            f"{self.images_per_second:.0f} images/s, data {self.data_percent:.0f} %"
        )


def summary(history: Sequence[EpochReport], best_path: Path) -> str:
    """Say what a training gave; `best_path` is where its best checkpoint lies, if it could be written."""
    best = max(history, key=lambda report: report.val_top1)  # the first of equals, as best.pth
    minutes = sum(report.train_seconds for report in history) / 60
    where = f" ({best_path})" if best_path.is_file() else ""  # there is none where the disk was full
    return (
        f"{len(history)} epochs in {minutes:.1f} minutes of training: top-1 {history[-1].val_top1:.2f} % at the end, "
        f"{best.val_top1:.2f} % after epoch {best.epoch}{where}"
    )
