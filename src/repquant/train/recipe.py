"""What the trained weights depend on, besides the images.

Nothing heavy is imported here: the command line takes its options from this dataclass.
"""

from dataclasses import MISSING, dataclass, field
from typing import Any

from repquant.errors import InputError, given
from repquant.option_ranges import (
    BATCH,
    CLASSES,
    COUNT,
    CROP_RATIO,
    DEVIATIONS,
    EPOCHS,
    IMAGE_SIDE,
    MEANS,
    RATE,
    SEED,
    Numbers,
    check_ranges,
)
from repquant.train.randaugment import parse_randaugment
from repquant.train.schedule import parse_sizes, size_at

AUGMENTATIONS = ("random-resized-crop", "padded-crop", "center-crop")
PRECISIONS = ("float32", "bfloat16", "float16")
OPTIMIZERS = ("sgd", "adamw")

TRAINING_BATCH = Numbers(2, 65536)  # batch statistics need two images
WARMUP = Numbers(0, 10**6)
WEIGHT = Numbers(0, 1000)
DECAY = Numbers(0, 1, below=True)
BETA = Numbers(0.001, 1000, or_zero=True)


def setting(help: str, default: Any = MISSING, allowed: Numbers | None = None) -> Any:
    """Return a dataclass field with a help text for the command line, and a range; without a default it is required."""
    return field(default=default, metadata={"help": help, "allowed": allowed})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All settings of a training; the defaults are those of the official 120 epochs on ImageNet, with label smoothing.

    That is SGD with momentum, a cosine from the learning rate to 0 over all steps, no weight decay on biases and batch
    normalization (Ding et al., CVPR 2021, section 4.1, and the code at DingXiaoH/RepVGG). The authors smooth labels in
    their longer trainings only; recipes/imagenet-120.yaml is what they do in 120 epochs.

    Raises:
        InputError: a setting is out of its range.
    """

    arch: str = setting("architecture, for example RepVGG-A0")
    num_classes: int = setting("number of classes", 1000, CLASSES)
    image_size: int = setting("side of the square images that the network sees, in pixels", 224, IMAGE_SIDE)
    crop_ratio: float = setting("image size / resized shorter side, for validation", 0.875, CROP_RATIO)
    mean: tuple[float, float, float] = setting("channel means for normalization", (0.485, 0.456, 0.406), MEANS)
    std: tuple[float, float, float] = setting(
        "channel standard deviations for normalization", (0.229, 0.224, 0.225), DEVIATIONS
    )
    augmentation: str = setting(f"of training images, beside flips: {', '.join(AUGMENTATIONS)}", AUGMENTATIONS[0])
    crop_area: float = setting(
        "smallest share of an image's area that random-resized-crop takes", 0.08, Numbers(0, 1, above=True)
    )
    size_schedule: str = setting('side of training images from an epoch on, for example "0:96,10:128"; "": fixed', "")
    randaugment: str = setting('RandAugment on the batch, for example n2m9; "": none', "")
    mixup: float = setting("alpha of mixup; 0 turns it off", 0.0, BETA)
    cutmix: float = setting("alpha of CutMix; 0 turns it off", 0.0, BETA)
    held_back_images: int = setting("validate on so many images taken out of training, in place of val/", 0, COUNT)
    training_images: int = setting("train on so many images, those of all classes alike; 0: on all", 0, COUNT)
    batch_size: int = setting("images a step, over all processes and accumulation steps together", 256, TRAINING_BATCH)
    accumulation_steps: int = setting("parts of a process's batch that pass one after the other", 1, BATCH)
    sync_bn: bool = setting("batch statistics over the parts of all processes", True)
    epochs: int = setting("passes over the training images", 120, EPOCHS)
    optimizer: str = setting(f"{' or '.join(OPTIMIZERS)}", OPTIMIZERS[0])
    learning_rate: float = setting("peak learning rate; it falls to 0 along a cosine", 0.1, RATE)
    reference_batch: int = setting(
        "images a step that the learning rate is for: it is scaled linearly; 0: as is", 0, Numbers(0, 65536)
    )
    warmup_epochs: float = setting("epochs in which the learning rate rises linearly to its peak", 0.0, WARMUP)
    momentum: float = setting("momentum of SGD; the first beta of AdamW", 0.9, DECAY)
    weight_decay: float = setting("weight decay of kernels; biases and batch normalization have none", 1e-4, WEIGHT)
    custom_l2: bool = setting("decay the equivalent kernel of each block in place of its branches' kernels", False)
    clip_norm: float = setting("largest norm of the gradient over all parameters; 0: no limit", 0.0, Numbers(0, 10**9))
    ema_decay: float = setting("decay of the average of weights that is validated and saved; 0: no average", 0.0, DECAY)
    label_smoothing: float = setting("share of the target that is spread evenly over all classes", 0.1, DECAY)
    auxiliary_weight: float = setting(
        "weight of the losses of auxiliary heads, where the network has some", 0.1, WEIGHT
    )
    init_weights: str = setting("checkpoint of the same architecture to start from; a head that differs is new", "")
    freeze_stages: int = setting(
        "parts that stay as they are: 1 is the stem, 2 the stem and the first stage, ..., 5 all but the head; of "
        "RepVGGplus, whose third stage has two halves, 6",
        0,
        Numbers(0, 100),
    )
    precision: str = setting("of the forward pass: float32, or under autocast bfloat16 or (cuda) float16", "float32")
    seed: int = setting("seed of the initial weights, the order of the images and their augmentation", 0, SEED)

    def __post_init__(self) -> None:
        """Refuse what could not be trained with."""
        check_ranges(self)
        self._require(self.augmentation in AUGMENTATIONS, "augmentation", f"one of {', '.join(AUGMENTATIONS)}")
        if self.crop_area != type(self).crop_area and self.augmentation != "random-resized-crop":
            raise InputError(f'`crop_area` is for `augmentation="random-resized-crop"`, and it is {self.augmentation}')
        self._require(self.precision in PRECISIONS, "precision", f"one of {', '.join(PRECISIONS)}")
        self._require(self.optimizer in OPTIMIZERS, "optimizer", f"one of {', '.join(OPTIMIZERS)}")
        if self.randaugment:
            parse_randaugment(self.randaugment)
        if self.size_schedule:
            begins = [epoch for epoch, _ in parse_sizes(self.size_schedule)]
            self._require(begins[-1] < self.epochs, "size_schedule", f"epochs from 0 to {self.epochs - 1}")
        self._require(0 <= self.warmup_epochs < self.epochs, "warmup_epochs", f"from 0 to less than {self.epochs}")

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate for this batch size (Goyal et al., "Accurate, large minibatch SGD", 2017)."""
        factor = self.batch_size / self.reference_batch if self.reference_batch else 1.0
        return self.learning_rate * factor

    @property
    def training_sizes(self) -> tuple[int, ...]:
        """All sides that training images have in the course of the training, in pixels."""
        plan = parse_sizes(self.size_schedule) if self.size_schedule else ((0, self.image_size),)
        return tuple(side for _, side in plan)

    def training_size(self, epoch: int) -> int:
        """The side of the training images in an epoch, counted from 0, in pixels."""
        return size_at(parse_sizes(self.size_schedule), epoch) if self.size_schedule else self.image_size

    @property
    def mixes_batches(self) -> bool:
        """Whether images are augmented as a batch too."""
        return bool(self.mixup or self.cutmix or self.randaugment)

    def _require(self, is_valid: bool, name: str, allowed: str) -> None:
        if not is_valid:
            raise InputError(f"{given(name, getattr(self, name))} was given; allowed is {allowed}")
