"""What the trained weights depend on, besides the images.

Nothing heavy is imported here: the command line takes its options from this dataclass.
"""

from dataclasses import dataclass
from typing import Literal, get_args

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
    option,
)
from repquant.train.randaugment import parse_randaugment
from repquant.train.schedule import parse_sizes, size_at

Augmentation = Literal["random-resized-crop", "padded-crop", "center-crop"]
AUGMENTATIONS: tuple[Augmentation, ...] = get_args(Augmentation)
Precision = Literal["float32", "bfloat16", "float16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
Optimizer = Literal["sgd", "adamw"]

TRAINING_BATCH = Numbers(2, 65536)  # batch statistics need two images
WARMUP = Numbers(0, 10**6)
WEIGHT = Numbers(0, 1000)
DECAY = Numbers(0, 1, below=True)
BETA = Numbers(0.001, 1000, or_zero=True)


@dataclass(frozen=True, kw_only=True)
class _Images:
    """Images: which ones, and what training sees of them."""

    image_size: int = option("side of the square images that the network sees, in pixels", 224, IMAGE_SIDE)
    crop_ratio: float = option("image size / resized shorter side, for validation", 0.875, CROP_RATIO)
    mean: tuple[float, float, float] = option("channel means for normalization", (0.485, 0.456, 0.406), MEANS)
    std: tuple[float, float, float] = option(
        "channel standard deviations for normalization", (0.229, 0.224, 0.225), DEVIATIONS
    )
    augmentation: Augmentation = option("of training images, beside flips", "random-resized-crop")
    crop_area: float = option(
        "smallest share of an image's area that random-resized-crop takes", 0.08, Numbers(0, 1, above=True)
    )
    size_schedule: str = option('side of training images from an epoch on, for example "0:96,10:128"; "": fixed', "")
    randaugment: str = option('RandAugment on the batch, for example n2m9; "": none', "")
    mixup: float = option("alpha of mixup; 0 turns it off", 0.0, BETA)
    cutmix: float = option("alpha of CutMix; 0 turns it off", 0.0, BETA)
    held_back_images: int = option("validate on so many images taken out of training, in place of val/", 0, COUNT)
    training_images: int = option("train on so many images, those of all classes alike; 0: on all", 0, COUNT)


@dataclass(frozen=True, kw_only=True)
class _Optimization:
    """Optimization: the loss, and the steps along it."""

    batch_size: int = option("images a step, over all processes and accumulation steps together", 256, TRAINING_BATCH)
    accumulation_steps: int = option("parts of a process's batch that pass one after the other", 1, BATCH)
    sync_bn: bool = option("batch statistics over the parts of all processes", True)
    epochs: int = option("passes over the training images", 120, EPOCHS)
    optimizer: Optimizer = option("what takes the steps", "sgd")
    learning_rate: float = option("peak learning rate; it falls to 0 along a cosine", 0.1, RATE)
    reference_batch: int = option(
        "images a step that the learning rate is for: it is scaled linearly; 0: as is", 0, Numbers(0, 65536)
    )
    warmup_epochs: float = option("epochs in which the learning rate rises linearly to its peak", 0.0, WARMUP)
    momentum: float = option("momentum of SGD; the first beta of AdamW", 0.9, DECAY)
    weight_decay: float = option("weight decay of kernels; biases and batch normalization have none", 1e-4, WEIGHT)
    custom_l2: bool = option("decay the equivalent kernel of each block in place of its branches' kernels", False)
    clip_norm: float = option("largest norm of the gradient over all parameters; 0: no limit", 0.0, Numbers(0, 10**9))
    ema_decay: float = option("decay of the average of weights that is validated and saved; 0: no average", 0.0, DECAY)
    label_smoothing: float = option("share of the target that is spread evenly over all classes", 0.1, DECAY)
    auxiliary_weight: float = option("weight of the losses of auxiliary heads, where the network has some", 0.1, WEIGHT)
    precision: Precision = option("of the forward pass; autocast but for float32, float16 on cuda alone", "float32")
    compile: bool = option("compile the passes by torch.compile, which takes minutes at the start", False)


@dataclass(frozen=True, kw_only=True)
class Recipe(_Optimization, _Images):
    """Training, in all its settings; the defaults: the official 120 epochs on ImageNet, with label smoothing.

    That is SGD with momentum, a cosine from the learning rate to 0 over all steps, no weight decay on biases and batch
    normalization (Ding et al., CVPR 2021, section 4.1, and the code at DingXiaoH/RepVGG). The authors smooth labels in
    their longer trainings only; recipes/imagenet-120.yaml is what they do in 120 epochs.

    Raises:
        InputError: a setting is out of its range.
    """

    arch: str = option("architecture, for example RepVGG-A0", "")
    model: str = option(
        "network of your own, package.module:function or file.py:function, in place of an architecture", ""
    )
    num_classes: int = option("number of classes", 1000, CLASSES)
    init_weights: str = option(
        "checkpoint of the same network to start from; of an architecture, a head that differs is new", ""
    )
    freeze_stages: int = option(
        "parts that stay as they are: 1 is the stem, 2 the stem and the first stage, ..., 5 all but the head; of "
        "RepVGGplus, whose third stage has two halves, 6",
        0,
        Numbers(0, 100),
    )
    seed: int = option("seed of the initial weights, the order of the images and their augmentation", 0, SEED)

    def __post_init__(self) -> None:
        """Refuse what could not be trained with."""
        check_ranges(self)
        if self.crop_area != type(self).crop_area and self.augmentation != "random-resized-crop":
            raise InputError(f'`crop_area` is for `augmentation="random-resized-crop"`, and it is {self.augmentation}')
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
