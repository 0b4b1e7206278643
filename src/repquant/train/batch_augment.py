"""RandAugment, mixup and CutMix on whole batches, where the network computes; the operations are kornia's.

All of it draws from torch's global random state: seed that and the batch is decided.

What differs from RepVGGplus' own `raug15`, which works on single images before normalization: it draws the magnitude
of every operation from 0..14 on a scale of 0..10, here the magnitude is fixed on a scale of 0..30; it fills with
gray, kornia with black; kornia has no Cutout among the operations; and kornia's SolarizeAdd adds everywhere and then
inverts what is above one half, where the other one adds below one half and inverts nothing.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributions import Beta
from torch.nn import functional as F

from repquant.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from repquant.errors import InputError
from repquant.train.randaugment import parse_randaugment

if TYPE_CHECKING:
    from kornia.augmentation.auto import RandAugment


class BatchAugmentation:
    """Augment a batch: RandAugment first, then mixup or CutMix.

    mixup (Zhang et al., ICLR 2018, arXiv:1710.09412): x = (1 - share) x_i + share x_j with one share for the batch.
    CutMix (Yun et al., ICCV 2019, arXiv:1905.04899): one box for the batch, filled from x_j; the share is its area.
    Labels are mixed by the same share. With both, each batch gets one of them with equal chance (timm's convention).

    RandAugment (Cubuk et al., 2019, arXiv:1909.13719): each image goes through n operations drawn with replacement.

    Args:
        mixup: alpha of Beta(alpha, alpha), from which the share is drawn; 0 turns it off.
        cutmix: the same for CutMix.
        randaugment: "n2m9" applies 2 operations of magnitude 9 out of 0..30, kornia's and torchvision's scale. 15 is
            its middle, where the enhancing operations (color, contrast, brightness, sharpness) change nothing: they
            weaken below it and strengthen above. "" turns it off.
        num_classes: K of the soft labels.
        mean: per channel, that the images are normalized with.
        std: per channel, that the images are normalized with.

    Raises:
        InputError: an argument is out of its range, or kornia is needed and not installed.
    """

    def __init__(
        self,
        *,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        randaugment: str = "",
        num_classes: int,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
    ) -> None:
        for name, alpha in (("mixup", mixup), ("cutmix", cutmix)):
            if alpha < 0:
                raise InputError(f"{name} {alpha} is negative; give the alpha of its Beta distribution, or 0 for none")
        self._mixup = mixup
        self._cutmix = cutmix
        self._num_classes = num_classes
        self._mean = torch.tensor(mean).view(3, 1, 1)
        self._std = torch.tensor(std).view(3, 1, 1)
        self._count, magnitude = parse_randaugment(randaugment) if randaugment else (0, 0)
        if mixup or cutmix or randaugment:
            require_kornia()
        self._operations = _operations(magnitude) if randaugment else []

    def __call__(
        self, images: Tensor, labels: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Augment one batch.

        Args:
            images: float (N, 3, H, W), normalized.
            labels: int64 (N,).
            generator: not used; kornia draws from the global random state.

        Returns:
            The images, of the same shape, and soft labels, float32 (N, K), that sum to 1.
        """
        del generator
        if self._operations:
            images = self._rand_augment(images)
        use_mixup = self._mixup > 0 and (self._cutmix == 0 or bool(torch.rand(()) < 0.5))
        if use_mixup:
            return self._mix_up(images, labels)
        if self._cutmix > 0:
            return self._cut_mix(images, labels)
        return images, self._one_hot(labels)

    def _rand_augment(self, images: Tensor) -> Tensor:
        mean, std = self._mean.to(images.device), self._std.to(images.device)
        images = (images * std + mean).clamp(0, 1)
        for _ in range(self._count):
            drawn = torch.randint(len(self._operations), (len(images),))
            for number, operation in enumerate(self._operations):
                rows = (drawn == number).nonzero().flatten().to(images.device)
                if len(rows) > 0:
                    images[rows] = operation(images[rows])
        return (images - mean) / std

    def _mix_up(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        from kornia.augmentation import RandomMixUpV2

        count = len(images)
        drawn = {  # kornia itself draws the share from a uniform distribution
            "mixup_pairs": torch.randperm(count),
            "mixup_lambdas": Beta(self._mixup, self._mixup).sample().expand(count),
            "batch_prob": torch.ones(count),
        }
        mixed, pairs = RandomMixUpV2(data_keys=["input", "class"])(images, labels, params=drawn)
        return mixed, self._soft_labels(pairs, pairs[:, 2])

    def _cut_mix(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        from kornia.augmentation import RandomCutMixV2

        mix = RandomCutMixV2(
            beta=self._cutmix, same_on_batch=True, use_correct_lambda=True, data_keys=["input", "class"]
        )
        mixed, (pairs,) = mix(images, labels)
        return mixed, self._soft_labels(pairs, 1 - pairs[:, 2])

    def _soft_labels(self, pairs: Tensor, share: Tensor) -> Tensor:
        """`pairs` (N, 3): own label and the partner's; `share` (N,) of the partner."""
        own, partner = (self._one_hot(pairs[:, column].long()) for column in (0, 1))
        return torch.lerp(own, partner, share.float().unsqueeze(1))

    def _one_hot(self, labels: Tensor) -> Tensor:
        return F.one_hot(labels, self._num_classes).float()


def _operations(magnitude: int) -> list["RandAugment"]:
    """One RandAugment for each operation: kornia's own draws operations once for the whole batch."""
    from kornia.augmentation.auto import RandAugment
    from kornia.augmentation.auto.rand_augment.rand_augment import default_policy

    return [RandAugment(n=1, m=magnitude, policy=[operation]) for operation in default_policy]


def require_kornia() -> None:
    """Accept that batches are augmented.

    Raises:
        InputError: kornia is not installed.
    """
    try:
        import kornia.augmentation  # noqa: F401
    except ImportError as error:
        raise InputError(
            "mixup, CutMix and RandAugment are kornia's, which is missing: pip install 'repquant[train]'"
        ) from error
