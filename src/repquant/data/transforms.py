"""The evaluation transform of the ImageNet convention: resize, center crop, normalize."""

from dataclasses import dataclass
from math import isfinite

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from repquant.errors import InputError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# An image of 1 x 100,000 pixels would grow to gigabytes when its shorter side is resized.
_MAX_RESIZED_PIXELS = 2**27


@dataclass(frozen=True, kw_only=True)
class EvalTransform:
    """Resize the shorter side to `image_size / crop_ratio`, crop the center, normalize.

    For a square `image_size` this is torchvision's `Resize(int(image_size / crop_ratio))`, `CenterCrop(image_size)`,
    `ToTensor()`, `Normalize(mean, std)` on PIL images, pixel for pixel: bilinear with antialiasing, the longer side
    rounded down, crop offsets rounded half to even.

    Args:
        image_size: side of the output in pixels, or (height, width). A pair resizes to the smallest image that covers
            (height, width) / crop_ratio.
        crop_ratio: share of the resized shorter side that the crop keeps, in (0, 1].
        mean: per RGB channel, of values in 0..1.
        std: per RGB channel, of values in 0..1.

    Raises:
        InputError: an argument is out of its range.
    """

    image_size: int | tuple[int, int] = 224
    crop_ratio: float = 0.875
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        if min(self.size) < 1:
            raise InputError(f"image size {self.image_size} is not positive; give the side in pixels, for example 224")
        if not all(isfinite(value) for value in (*self.mean, *self.std)):
            raise InputError(f"mean {self.mean} and std {self.std} need to be finite numbers")
        if not 0 < self.crop_ratio <= 1:
            raise InputError(f"crop ratio {self.crop_ratio} is outside (0, 1]; 0.875 is usual, 1.0 crops no margin")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise InputError(
                f"mean {self.mean} and std {self.std} need three values each, for R, G and B, and a std above 0"
            )

        pixels = (self.size[0] / self.crop_ratio) * (self.size[1] / self.crop_ratio)
        if not pixels <= _MAX_RESIZED_PIXELS:
            raise InputError(
                f"image size {self.image_size} with crop ratio {self.crop_ratio} needs images of {pixels:.3g} pixels, "
                f"more than {_MAX_RESIZED_PIXELS:,}; lower the size or raise the ratio"
            )

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the output."""
        if isinstance(self.image_size, int):
            return self.image_size, self.image_size
        height, width = self.image_size
        return height, width

    def __call__(self, image: Image.Image) -> Tensor:
        """Resize and crop an RGB image to a uint8 tensor (3, H, W).

        Raises:
            InputError: the image is so elongated that resizing it would take more than 2^27 pixels.
        """
        crop_height, crop_width = self.size
        target = int(crop_height / self.crop_ratio), int(crop_width / self.crop_ratio)
        height, width = _covering_size(image.height, image.width, target)
        if height * width > _MAX_RESIZED_PIXELS:
            raise InputError(
                f"an image of {image.width} x {image.height} pixels would be resized to {width} x {height}; "
                "crop it to a less extreme shape"
            )
        top, left = round((height - crop_height) / 2), round((width - crop_width) / 2)
        resized = image.resize((width, height), Image.Resampling.BILINEAR)
        cropped = resized.crop((left, top, left + crop_width, top + crop_height))
        return torch.from_numpy(np.array(cropped)).permute(2, 0, 1).contiguous()

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 images (N, 3, H, W) to float32 of the same shape: (x / 255 - mean) / std, in torchvision's order."""
        mean = torch.tensor(self.mean, device=images.device).view(3, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(3, 1, 1)
        assert images.dtype == torch.uint8, images.dtype
        return images.to(torch.float32).div_(255).sub_(mean).div_(std)


def _covering_size(height: int, width: int, target: tuple[int, int]) -> tuple[int, int]:
    """The smallest (height, width) of this aspect ratio that covers `target`; the longer side is rounded down."""
    target_height, target_width = target
    if target_height * width >= target_width * height:
        return target_height, target_height * width // height
    return target_width * height // width, target_width
