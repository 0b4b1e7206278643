"""What the trained weights depend on, besides the images.

Nothing heavy is imported here: the command line takes its options from this dataclass.
"""

from dataclasses import MISSING, dataclass, field
from typing import Any

from repquant.errors import InputError

AUGMENTATIONS = ("random-resized-crop", "padded-crop")
PRECISIONS = ("float32", "bfloat16")


def _setting(help: str, default: Any = MISSING) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All settings of a training; the defaults are those of the official 120 epochs on ImageNet.

    That is SGD with momentum, a cosine from the learning rate to 0 over all steps, label smoothing, no weight decay on
    biases and batch normalization (Ding et al., CVPR 2021, section 4.1, and the code at DingXiaoH/RepVGG).

    Raises:
        InputError: a setting is out of its range.
    """

    arch: str = _setting("architecture, for example RepVGG-A0")
    num_classes: int = _setting("number of classes", 1000)
    image_size: int = _setting("side of the square images that the network sees, in pixels", 224)
    crop_ratio: float = _setting("image size / resized shorter side, for validation", 0.875)
    mean: tuple[float, float, float] = _setting("channel means for normalization", (0.485, 0.456, 0.406))
    std: tuple[float, float, float] = _setting("channel standard deviations for normalization", (0.229, 0.224, 0.225))
    augmentation: str = _setting(f"of training images, beside flips: {' or '.join(AUGMENTATIONS)}", AUGMENTATIONS[0])
    batch_size: int = _setting("images a step", 256)
    epochs: int = _setting("passes over the training images", 120)
    learning_rate: float = _setting("peak learning rate; it falls to 0 along a cosine", 0.1)
    warmup_epochs: float = _setting("epochs in which the learning rate rises linearly to its peak", 0.0)
    momentum: float = _setting("momentum of SGD", 0.9)
    weight_decay: float = _setting("weight decay of kernels; biases and batch normalization have none", 1e-4)
    custom_l2: bool = _setting("decay the equivalent kernel of each block in place of its branches' kernels", False)
    label_smoothing: float = _setting("share of the target that is spread evenly over all classes", 0.1)
    precision: str = _setting("of the forward pass: float32, or bfloat16 under autocast", "float32")
    seed: int = _setting("seed of the initial weights, the order of the images and their augmentation", 0)

    def __post_init__(self) -> None:
        """Refuse what could not be trained with."""
        self._require(self.augmentation in AUGMENTATIONS, "augmentation", f"one of {', '.join(AUGMENTATIONS)}")
        self._require(self.precision in PRECISIONS, "precision", f"one of {', '.join(PRECISIONS)}")
        self._require(self.batch_size >= 2, "batch_size", "at least 2, for batch statistics")
        self._require(self.epochs >= 1, "epochs", "at least 1")
        self._require(0 < self.learning_rate < float("inf"), "learning_rate", "a positive number")
        self._require(0 <= self.warmup_epochs < self.epochs, "warmup_epochs", f"from 0 to less than {self.epochs}")
        self._require(0 <= self.momentum < 1, "momentum", "from 0 to less than 1")
        self._require(0 <= self.weight_decay < float("inf"), "weight_decay", "0 or a positive number")
        self._require(0 <= self.label_smoothing < 1, "label_smoothing", "from 0 to less than 1")
        self._require(self.seed >= 0, "seed", "0 or a positive integer")

    def _require(self, is_valid: bool, name: str, allowed: str) -> None:
        if not is_valid:
            flag = name.replace("_", "-")
            raise InputError(f"--{flag} {getattr(self, name)} was given; allowed is {allowed}")
