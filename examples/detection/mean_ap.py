"""Mean average precision as COCO defines it, found by pycocotools, and for any weights of the images.

The weights are for the bootstrap: an image that is drawn twice counts twice, and nothing is matched again.
"""

from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from decode import Detections, decode, iou
from scenes import SIZE, Scene, Scenes

MOST = 100  # detections in an image
RECALLS = np.linspace(0, 1, 101)
CERTAIN, SAME = 0.3, 0.9  # the score and the overlap of detections that are compared


@dataclass(frozen=True)
class OfClass:
    """How the detections of one class fared, best first.

    Attributes:
        images: (D,), the image of each.
        hits: (T, D), whether it found an object, by the overlap that is asked for.
        objects: (N,), how many each image holds.
    """

    images: np.ndarray
    hits: np.ndarray
    objects: np.ndarray


@dataclass(frozen=True)
class Matches:
    """What was found in each image, and how the detections of each class fared."""

    found: list[Detections]
    classes: tuple[OfClass, ...]

    def score(self, weights: np.ndarray | None = None) -> float:
        """Return the mAP at overlaps of 0.50 to 0.95, in points; each image counts as its weight (N,) says."""
        return 100 * float(np.mean([p for c in self.classes if (p := _precisions(c, weights)) is not None]))

    def score_at_half(self) -> float:
        """Return the mAP at an overlap of 0.50, in points."""
        halves = (OfClass(c.images, c.hits[:1], c.objects) for c in self.classes)
        return Matches(self.found, tuple(halves)).score()

    def alike(self, other: "Matches") -> float:
        """Return how many of the certain detections the other results have too, in the same place, in percent."""
        same = torch.cat([_repeated(*pair) for pair in zip(self.found, other.found, strict=True)])
        return 100 * float(same.float().mean())


class MeanAp:
    """The mAP of a network on some scenes: what `rq.search` and `rq.prove` take as `evaluate`.

    Args:
        scenes: of one split.
        numbers: which of them.
    """

    def __init__(self, scenes: Scenes, numbers: range) -> None:
        self.batches, self.truth = scenes.batches(numbers)

    def __call__(self, network) -> float:
        return self.results(network).score()

    def results(self, network) -> Matches:
        """Return what a network finds: a callable from (N, 3, S, S) to what `Detector` returns."""
        return match([found for images in self.batches for found in decode(network(images), SIZE)], self.truth)


def match(detections: list[Detections], scenes: list[Scene]) -> Matches:
    """Match the detections with the objects of the same images."""
    with redirect_stdout(StringIO()):  # it tells what it does
        truth = _coco(scenes)
        judged = COCOeval(truth, _loaded(truth, detections), "bbox")
        judged.params.areaRng, judged.params.areaRngLbl = [[0, SIZE**2]], ["all"]
        judged.params.maxDets = [MOST]
        judged.evaluate()
    count = len(scenes)
    by_class = [judged.evalImgs[start : start + count] for start in range(0, len(judged.evalImgs), count)]
    return Matches(detections, tuple(_of_class(found, len(judged.params.iouThrs)) for found in by_class))


def _repeated(image: Detections, other: Detections) -> torch.Tensor:
    is_certain = image.scores > CERTAIN
    is_same = (iou(image.boxes, other.boxes) > SAME) & (image.labels[:, None] == other.labels)
    return is_same[is_certain].any(1)


def _coco(scenes: list[Scene]) -> COCO:
    objects = [
        {"image_id": number, "category_id": int(label), "bbox": _corner_and_size(box), "iscrowd": 0}
        for number, scene in enumerate(scenes)
        for box, label in zip(scene.boxes.tolist(), scene.labels, strict=True)
    ]
    for number, item in enumerate(objects, start=1):
        item |= {"id": number, "area": item["bbox"][2] * item["bbox"][3]}
    coco = COCO()
    coco.dataset = {
        "images": [{"id": number} for number in range(len(scenes))],
        "categories": [{"id": label} for label in sorted({item["category_id"] for item in objects})],
        "annotations": objects,
    }
    coco.createIndex()
    return coco


def _loaded(truth: COCO, detections: list[Detections]) -> COCO:
    found = [
        {"image_id": number, "category_id": int(label), "bbox": _corner_and_size(box), "score": score}
        for number, image in enumerate(detections)
        for box, score, label in zip(image.boxes.tolist(), image.scores.tolist(), image.labels, strict=True)
    ]
    if found:
        return truth.loadRes(found)
    nothing = COCO()
    nothing.dataset = {**truth.dataset, "annotations": []}
    nothing.createIndex()
    return nothing


def _corner_and_size(box: list[float]) -> list[float]:
    left, top, right, bottom = box
    return [left, top, right - left, bottom - top]


def _of_class(found: list[dict | None], thresholds: int) -> OfClass:
    images = [np.full(len(item["dtScores"]), number) for number, item in enumerate(found) if item]
    scores = np.concatenate([item["dtScores"] for item in found if item] or [[]])
    hits = np.concatenate([item["dtMatches"] > 0 for item in found if item] or [np.zeros((thresholds, 0))], 1)
    order = np.argsort(-scores, kind="mergesort")
    return OfClass(
        images=np.concatenate(images or [np.zeros(0)])[order].astype(int),
        hits=hits[:, order].astype(bool),
        objects=np.array([len(item["gtIds"]) if item else 0 for item in found]),
    )


def _precisions(found: OfClass, weights: np.ndarray | None) -> float | None:
    """Return the mean precision over recalls and overlaps; None where no object of the class is there."""
    weights = np.ones(len(found.objects)) if weights is None else weights
    objects = (found.objects * weights).sum()
    if not objects:
        return None
    each = weights[found.images]
    right, all_ = (found.hits * each).cumsum(1), each.cumsum()
    precision = right / np.maximum(all_, 1e-12)
    precision = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]  # the best at this recall or more
    padded = np.pad(precision, ((0, 0), (0, 1)))  # 0 at recalls that are not reached
    rows = zip(right / objects, padded, strict=True)
    return float(np.mean([row[np.searchsorted(recall, RECALLS)] for recall, row in rows]))
