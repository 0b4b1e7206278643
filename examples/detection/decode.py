"""Between the raw predictions of the detector and boxes in pixels."""

from dataclasses import dataclass

import torch
from torch import Tensor

from detector import STRIDES

_FARTHEST = 4.0  # logarithm of a distance in strides
_NEAREST = 1e-3  # in strides


@dataclass(frozen=True)
class Detections:
    """What is seen in one image, best first.

    Attributes:
        boxes: (K, 4), left, top, right, bottom in pixels.
        scores: (K,), probabilities.
        labels: (K,), classes.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


def places(size: int) -> tuple[Tensor, Tensor]:
    """Return the centers (P, 2) of all places of an image, x and y in pixels, and the strides (P,)."""
    centers, strides = [], []
    for stride in STRIDES:
        line = (torch.arange(size // stride) + 0.5) * stride
        y, x = torch.meshgrid(line, line, indexing="ij")
        centers.append(torch.stack([x.flatten(), y.flatten()], 1))
        strides.append(torch.full((len(line) ** 2,), float(stride)))
    return torch.cat(centers), torch.cat(strides)


def to_pixels(raw: Tensor, centers: Tensor, strides: Tensor) -> Tensor:
    """Map logarithms of distances (N, 4, P) to boxes (N, P, 4)."""
    distances = raw.clamp(max=_FARTHEST).exp().transpose(1, 2) * strides[:, None]
    return torch.cat([centers - distances[..., :2], centers + distances[..., 2:]], 2)


def from_pixels(boxes: Tensor, centers: Tensor, strides: Tensor) -> Tensor:
    """Map boxes (N, P, 4) to logarithms of distances (N, 4, P): inverts `to_pixels` where they hold the centers."""
    distances = torch.cat([centers - boxes[..., :2], boxes[..., 2:] - centers], 2) / strides[:, None]
    return distances.clamp(min=_NEAREST).log().transpose(1, 2)


def decode(
    output: dict[str, Tensor], size: int, *, least: float = 0.02, overlap: float = 0.6, most: int = 100
) -> list[Detections]:
    """Return the detections in each image: those above a score that no better one of their class overlaps.

    Args:
        output: of the detector.
        size: of the images, in pixels.
        least: score.
        overlap: intersection over union from which on two boxes of a class are one object.
        most: detections in an image.
    """
    boxes = to_pixels(output["boxes"], *places(size)).clamp(0, size)
    probabilities = output["scores"].sigmoid().transpose(1, 2)
    return [_of_image(*pair, least, overlap, most) for pair in zip(boxes, probabilities, strict=True)]


def _of_image(boxes: Tensor, probabilities: Tensor, least: float, overlap: float, most: int) -> Detections:
    place, label = (probabilities > least).nonzero(as_tuple=True)
    scores = probabilities[place, label]
    order = scores.argsort(descending=True, stable=True)[: 10 * most]
    boxes, labels, scores = boxes[place[order]], label[order], scores[order]
    kept = suppress(boxes, labels, overlap)[:most]
    return Detections(boxes[kept], scores[kept], labels[kept])


def suppress(boxes: Tensor, labels: Tensor, overlap: float) -> Tensor:
    """Return the places of the boxes (K, 4), best first, that overlap with no better one of their class."""
    hides = ((iou(boxes, boxes) > overlap) & (labels[:, None] == labels)).numpy()
    is_left = torch.ones(len(boxes), dtype=torch.bool).numpy()
    for best in range(len(boxes)):
        if is_left[best]:
            is_left[best + 1 :] &= ~hides[best, best + 1 :]
    return torch.from_numpy(is_left).nonzero().flatten()


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Return the intersections over unions (A, B) of boxes (A, 4) and (B, 4)."""
    sides = (torch.minimum(a[:, None, 2:], b[:, 2:]) - torch.maximum(a[:, None, :2], b[:, :2])).clamp(min=0)
    shared = sides.prod(2)
    return shared / (area(a)[:, None] + area(b) - shared).clamp(min=1e-9)


def area(boxes: Tensor) -> Tensor:
    """Return the areas (K,) of boxes (K, 4)."""
    return (boxes[:, 2:] - boxes[:, :2]).prod(1)
