"""The example that trains and quantizes a detector: its data, its decoding, its metrics, and its way to a file."""

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn

import ends
import mean_ap
import repquant as rq
import train
from decode import Detections, decode, from_pixels, places, to_pixels
from detector import Detector
from intervals import Bootstrap
from loss import assign, detection_loss
from mean_ap import MeanAp, match
from mean_iou import MeanIou
from repquant.runtimes.cpu import int8_support
from scenes import SIZE, Scene, Scenes
from segmenter import Segmenter

INT8 = "int8" if int8_support().safe else "int7"  # what this CPU multiplies exactly


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return Scenes("val").batch(range(12))[1]


def perfect(scene: Scene) -> Detections:
    return Detections(scene.boxes, torch.ones(len(scene.boxes)), scene.labels)


def noisy(scenes: list[Scene]) -> list[Detections]:
    """Moved boxes with scores in a random order, and some of another class."""
    torch.manual_seed(0)
    found = []
    for scene in scenes:
        boxes = torch.cat([scene.boxes, scene.boxes]) + 2 * torch.randn(2 * len(scene.boxes), 4)
        scores = torch.rand(len(boxes)).sort(descending=True).values
        found.append(Detections(boxes, scores, torch.cat([scene.labels, scene.labels.roll(1)])))
    return found


def test_a_scene_is_a_function_of_its_number():
    first, again, other = Scenes("train")[3], Scenes("train")[3], Scenes("train")[4]
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.boxes, again.boxes)
    assert not torch.equal(first.image, other.image)
    assert not torch.equal(first.image, Scenes("val")[3].image)


def test_boxes_lie_in_the_image_and_around_what_is_seen(scenes):
    for scene in scenes:
        left, top, right, bottom = scene.boxes.T
        assert (left >= 0).all()
        assert (top >= 0).all()
        assert (right <= SIZE).all()
        assert (bottom <= SIZE).all()
        assert (right > left).all()
        assert (bottom > top).all()
        assert set((scene.mask.unique() - 1).tolist()) - {-1} == set(scene.labels.tolist())
        for label in scene.labels.unique():
            rows, columns = (scene.mask == label + 1).nonzero(as_tuple=True)
            own = scene.boxes[scene.labels == label]
            assert rows.min() >= own[:, 1].min()
            assert columns.max() < own[:, 2].max()


def test_photographs_are_backgrounds(tmp_path):
    (tmp_path / "val" / "n1").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="val holds no JPEG"):
        Scenes("val", tmp_path)
    Image.new("RGB", (200, 150), (255, 0, 0)).save(tmp_path / "val" / "n1" / "red.jpeg")
    red = Scenes("val", tmp_path)[0]
    background = red.image[:, red.mask == 0]
    assert float(background[0].median()) > 1 > -1 > float(background[1].median())


def test_decoding_inverts_encoding(scenes):
    centers, strides = places(SIZE)
    raw = torch.randn(2, 4, len(centers)).clamp(-3.9, 3.9)  # distances end at e^4 strides
    torch.testing.assert_close(from_pixels(to_pixels(raw, centers, strides), centers, strides), raw, rtol=0, atol=1e-4)
    for scene in scenes:
        owners = assign(scene, centers, strides)
        boxes = from_pixels(scene.boxes[owners.clamp(min=0)][None], centers, strides)
        scores = torch.full((1, 10, len(centers)), -9.0)
        scores[0, scene.labels[owners.clamp(min=0)], torch.arange(len(centers))] = torch.where(owners < 0, -9.0, 9.0)
        (found,) = decode({"boxes": boxes, "scores": scores}, SIZE)
        answered = owners[owners >= 0].unique()
        assert len(answered) >= len(scene.boxes) - 1  # a small object may hide the center of another
        for box in scene.boxes[answered]:
            assert (found.boxes - box).abs().amax(1).min() < 0.01


def test_the_better_of_two_boxes_of_a_class_stays():
    centers, strides = places(SIZE)
    boxes = torch.tensor([[20.0, 20, 60, 60]]).expand(1, len(centers), 4)
    scores = torch.full((1, 2, len(centers)), -9.0)
    inside = [k for k, (x, y) in enumerate(centers.tolist()) if (x, y) in ((28, 28), (36, 36))]
    scores[0, 0, inside] = torch.tensor([1.0, 2.0])
    scores[0, 1, inside[0]] = 0.0
    (found,) = decode({"boxes": from_pixels(boxes, centers, strides), "scores": scores}, SIZE)
    assert found.labels.tolist() == [0, 1]
    torch.testing.assert_close(found.scores, torch.tensor([2.0, 0.0]).sigmoid())


def test_map_is_that_of_pycocotools(scenes):
    assert match([perfect(scene) for scene in scenes], scenes).score() == 100
    assert match([Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0)) for _ in scenes], scenes).score() == 0
    found = noisy(scenes)
    truth = mean_ap._coco(scenes)
    official = COCOeval(truth, mean_ap._loaded(truth, found), "bbox")
    official.evaluate()
    official.accumulate()
    official.summarize()
    matches = match(found, scenes)
    assert 5 < matches.score() < 95
    assert matches.score() == pytest.approx(100 * official.stats[0], abs=1e-9)
    assert matches.score_at_half() == pytest.approx(100 * official.stats[1], abs=1e-9)


def test_a_weight_counts_an_image_as_often(scenes):
    found = noisy(scenes)
    weights = np.array([2.0] * 3 + [0.0] + [1.0] * 8)
    twice = [*range(3), *range(3), *range(4, 12)]
    expected = match([found[k] for k in twice], [scenes[k] for k in twice]).score()
    assert match(found, scenes).score(weights) == pytest.approx(expected, abs=0.5)  # equal scores change places


def test_intervals_and_likeness(scenes):
    exact, moved = match([perfect(scene) for scene in scenes], scenes), match(noisy(scenes), scenes)
    bootstrap = Bootstrap(exact, len(scenes), draws=20)
    assert bootstrap.drop(exact) == (0, 0, 0)
    drop, low, high = bootstrap.drop(moved)
    assert 0 < low < drop < high
    assert exact.alike(exact) == 100
    assert exact.alike(moved) < 100


def test_miou_of_the_truth_is_whole():
    metric = MeanIou(Scenes("val"), range(4))
    truth = iter([torch.stack([scene.mask for scene in metric.truth])])
    results = metric.results(lambda _: nn.functional.one_hot(next(truth), 11).permute(0, 3, 1, 2).float())
    assert results.score() == 100
    background = metric.results(lambda images: torch.eye(11)[0].view(1, 11, 1, 1).expand(len(images), 11, SIZE, SIZE))
    assert 0 < background.score() < 20
    assert 0 < results.alike(background) < 100


def test_a_detector_becomes_a_file_that_computes_the_same(tmp_path):
    """With SiLU; the search takes the one with ReLU."""
    torch.manual_seed(0)
    model, (images, _) = Detector(nn.SiLU, width=8).eval(), Scenes("val").batch(range(8))
    same_file(rq.quantize(model, [images], target="onnxruntime"), images, tmp_path)


def test_a_search_goes_by_map(tmp_path):
    torch.manual_seed(0)
    model, (images, _) = Detector(width=8).eval(), Scenes("val").batch(range(8))
    found = rq.search(model, [images], max_drop=100, evaluate=MeanAp(Scenes("train"), range(4)))
    assert "with a drop of" in found.outcome.reason
    same_file(found, images, tmp_path)


def same_file(int8: rq.Quantized, images: Tensor, folder: Path) -> None:
    assert {layer.precision for layer in int8.layers} == {INT8}
    assert len(int8.layers) == 20  # of 35 in the training form
    engine = rq.load(int8.save(folder / "int8.onnx"))
    assert engine.outputs == ("boxes", "scores")
    for expected, actual in zip(int8(images).values(), engine(images.numpy()), strict=True):
        torch.testing.assert_close(torch.from_numpy(actual), expected, rtol=0, atol=2e-3 * float(expected.std()))


def test_a_segmenter_merges_its_dilated_blocks(tmp_path):
    torch.manual_seed(0)
    model, (images, _) = Segmenter(width=8).eval(), Scenes("val").batch(range(2))
    deploy = rq.reparameterize(model, images)
    assert {deploy.get_submodule(f"backbone.{k}.reparam").dilation for k in range(2, 7)} == {(1, 1), (2, 2), (4, 4)}
    int8 = rq.quantize(deploy, [images], target="onnxruntime")
    engine = rq.load(int8.save(tmp_path / "int8.onnx"))
    expected = int8(images)
    same = torch.from_numpy(engine(images.numpy())).argmax(1) == expected.argmax(1)
    assert float(same.float().mean()) > 0.999


def test_training_goes_on_where_it_was_interrupted(tmp_path, monkeypatch):
    monkeypatch.setitem(train.TASKS, "detector", (lambda activation: Detector(activation, width=8), detection_loss))
    options = {"task": "detector", "activation": "relu", "data": None, "batch": 2, "learning_rate": 1e-3, "seed": 0}
    whole, parts = tmp_path / "whole.pt", tmp_path / "parts.pt"
    train.train(argparse.Namespace(output=whole, scenes=6, **options))
    real, calls = train.detection_loss, []

    def interrupted(*given: object) -> Tensor:
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(train, "SAVE_EVERY", 1)
    monkeypatch.setitem(train.TASKS, "detector", (train.TASKS["detector"][0], interrupted))
    with pytest.raises(KeyboardInterrupt):
        train.train(argparse.Namespace(output=parts, scenes=6, **options))
    train.train(argparse.Namespace(output=parts, scenes=6, **options))
    expected, actual = (train.load("detector", "relu", path).state_dict() for path in (whole, parts))
    assert all(torch.equal(value, actual[name]) for name, value in expected.items())


@torch.inference_mode()
def test_one_grid_for_pixels_and_probabilities_loses_the_probabilities():
    torch.manual_seed(0)
    model, (images, _) = Detector(width=8).eval(), Scenes("val").batch(range(2))
    network = ends.in_pixels(model)
    exact = network(images)["scores"]
    own, shared = (
        float((ends.rounded(network, [images], shared=shared)(images)["scores"] - exact).abs().max())
        for shared in (False, True)
    )
    assert own < 0.01 < shared
    torch.testing.assert_close(ends.raw(network)(images)["boxes"], model(images)["boxes"], rtol=0, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("task", train.TASKS)
def test_the_table_is_measured(task, tmp_path):
    import quantize

    torch.manual_seed(0)
    torch.save({"model": train.build(task, "relu").state_dict()}, tmp_path / "weights.pt")
    options = {"task": task, "activation": "relu", "weights": Path(tmp_path / "weights.pt"), "data": None}
    lines = list(quantize.table(argparse.Namespace(target="onnxruntime", calibration=32, validation=4, **options)))
    assert len(lines) > 12
    assert len({line.count("|") for line in lines}) == 1
