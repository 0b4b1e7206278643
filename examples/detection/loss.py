"""What the detector learns: places near the center of an object answer for it."""

import torch
from torch import Tensor
from torch.nn import functional as F

from decode import area, places, to_pixels
from scenes import SIZE, Scene

RADIUS = 1.5  # in strides, around the center of an object
LARGEST_FINE = 36.0  # longer side of objects that stride 8 answers for, in pixels


def assign(scene: Scene, centers: Tensor, strides: Tensor) -> Tensor:
    """Return the object (P,) that each place answers for, -1 for none; the smallest of several."""
    middle = (scene.boxes[:, :2] + scene.boxes[:, 2:]) / 2
    longer = (scene.boxes[:, 2:] - scene.boxes[:, :2]).amax(1)
    is_near = ((centers[:, None] - middle).abs() < RADIUS * strides[:, None, None]).all(2)
    from_edges = torch.cat([centers[:, None] - scene.boxes[:, :2], scene.boxes[:, 2:] - centers[:, None]], 2)
    is_of_level = (strides == strides.min())[:, None] == (longer <= LARGEST_FINE)
    costs = torch.where(is_near & (from_edges > 0).all(2) & is_of_level, area(scene.boxes), torch.inf)
    smallest, which = costs.min(1)
    return torch.where(smallest.isfinite(), which, -1)


def detection_loss(output: dict[str, Tensor], scenes: list[Scene]) -> Tensor:
    """Return quality focal loss of the scores plus 2 times GIoU loss of the boxes, for each place with an object.

    Quality focal loss: Li et al., NeurIPS 2020, arXiv:2006.04388. GIoU: Rezatofighi et al., CVPR 2019.
    """
    centers, strides = places(SIZE)
    owners = torch.stack([assign(scene, centers, strides) for scene in scenes])
    image, place = (owners >= 0).nonzero(as_tuple=True)
    objects = owners[image, place]
    boxes = torch.stack([scenes[i].boxes[k] for i, k in zip(image.tolist(), objects.tolist(), strict=True)])
    labels = torch.stack([scenes[i].labels[k] for i, k in zip(image.tolist(), objects.tolist(), strict=True)])

    overlap, generalized = _giou(to_pixels(output["boxes"], centers, strides)[image, place], boxes)
    logits = output["scores"]
    quality = torch.zeros_like(logits)
    quality[image, labels, place] = overlap.detach()
    gap = (quality - logits.sigmoid()).abs().detach()
    scores = (gap**2 * F.binary_cross_entropy_with_logits(logits, quality, reduction="none")).sum()
    return (scores + 2 * (1 - generalized).sum()) / len(objects)


def _giou(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return the intersection over union (K,) of pairs of boxes (K, 4), and the generalized one."""
    shared = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(1)
    union = area(a) + area(b) - shared
    around = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).prod(1)
    return shared / union, shared / union - (around - union) / around
