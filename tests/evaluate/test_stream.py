from collections.abc import Callable

import numpy as np
import pytest
import torch

from repquant.data.loading import Batch
from repquant.errors import InputError
from repquant.evaluate import stream
from repquant.evaluate.disagreement import Keeper, largest_disagreements
from repquant.evaluate.predictions import OutputDifference, Predictions
from repquant.evaluate.stream import Evaluation, evaluate

CLASSES = 7


class LookUp:
    """A runtime that knows each image by the number in its pixels, and its logits from a table (N, K)."""

    name, version = "table", "1"

    def __init__(self, logits: np.ndarray, on_call: Callable[[], None] = lambda: None) -> None:
        self.logits = logits.astype(np.float32)
        self.seen: list[list[int]] = []
        self._on_call = on_call

    def __call__(self, images: np.ndarray) -> np.ndarray:
        numbers = images[:, 0, 0, 0].astype(int)
        self.seen.append(numbers.tolist())
        self._on_call()
        return self.logits[numbers]


def batches(images: int, batch_size: int, labels: np.ndarray | None = None) -> list[Batch]:
    pixels = torch.arange(images, dtype=torch.float32)[:, None, None, None].expand(-1, 3, 2, 2)
    targets = None if labels is None else torch.from_numpy(labels)
    return [
        Batch(pixels[i : i + batch_size], None if targets is None else targets[i : i + batch_size])
        for i in range(0, images, batch_size)
    ]


@pytest.fixture
def tables() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((23, CLASSES))
    return {name: logits + rng.normal(0, noise, logits.shape) for name, noise in [("f", 0), ("q", 0.5), ("r", 0.6)]}


@pytest.fixture
def labels() -> np.ndarray:
    return np.random.default_rng(1).integers(0, CLASSES, 23)


@pytest.mark.parametrize(("batch_size", "chunk_images"), [(4, 8), (4, 1), (5, 1000), (23, 8), (1, 3)])
def test_same_as_all_logits_at_once(tables, labels, batch_size, chunk_images):
    result = evaluate(
        {name: LookUp(table) for name, table in tables.items()},
        batches(23, batch_size, labels),
        compare=[("q", "f"), ("r", "q")],
        chunk_images=chunk_images,
    )
    tables = {name: table.astype(np.float32) for name, table in tables.items()}
    for name, table in tables.items():
        expected = Predictions.of(table, labels)
        for key in ("top1", "correct", "in_top5"):
            np.testing.assert_array_equal(getattr(result.predictions[name], key), getattr(expected, key))
    assert result.differences.keys() == {("q", "f"), ("r", "q")}
    for (name, reference), difference in result.differences.items():
        expected = OutputDifference.between(tables[reference], tables[name])
        for key in ("same_top1", "kl", "signal", "noise", "largest", "reference_largest"):
            np.testing.assert_allclose(getattr(difference, key), getattr(expected, key))


def test_parts_of_the_images_are_joined_in_their_order(tables, labels):
    runtimes = {name: LookUp(table) for name, table in tables.items()}
    whole = batches(23, 4, labels)
    parts = [evaluate(runtimes, part, compare=[("q", "f")]) for part in (whole[:1], whole[1:5], whole[5:])]
    joined, expected = Evaluation.concatenate(parts), evaluate(runtimes, whole, compare=[("q", "f")])
    for name in tables:
        for key in ("top1", "correct", "in_top5"):
            np.testing.assert_array_equal(
                getattr(joined.predictions[name], key), getattr(expected.predictions[name], key)
            )
        assert joined.seconds[name] == max(part.seconds[name] for part in parts)
    pair = ("q", "f")
    for key in ("same_top1", "kl", "signal", "noise", "largest", "reference_largest"):
        np.testing.assert_allclose(getattr(joined.differences[pair], key), getattr(expected.differences[pair], key))


def test_runtimes_take_turns_by_chunks_after_a_warm_up(tables):
    turns = []
    runtimes = {name: LookUp(tables[name], lambda name=name: turns.append(name)) for name in ("f", "q")}
    evaluate(runtimes, batches(10, 2), chunk_images=4)
    assert "".join(turns) == "fffqqqffqqfq"
    assert runtimes["f"].seen == [[0, 1], [0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]


def test_seconds_are_those_inside_the_runtime_without_warm_up(tables, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(stream, "perf_counter", lambda: now[0])

    def cost(warm: float) -> Callable[[], None]:
        calls = []

        def spend() -> None:
            now[0] += warm if calls else 1000.0
            calls.append(None)

        return spend

    runtimes = {"f": LookUp(tables["f"], cost(2.0)), "q": LookUp(tables["q"], cost(0.5))}
    slow_loader = (batch for batch in batches(10, 2) if not now.__setitem__(0, now[0] + 77.0))
    result = evaluate(runtimes, slow_loader, chunk_images=4, compare=[("q", "f")])
    assert result.seconds == {"f": 10.0, "q": 2.5}


def test_reports_progress(tables):
    done = []
    evaluate({"f": LookUp(tables["f"])}, batches(10, 2), chunk_images=4, on_images=done.append)
    assert done == [4, 4, 2]


def test_memory_holds_one_chunk(tables):
    produced, held = [], []

    def source():
        for batch in batches(20, 2):
            produced.append(len(batch.images))
            yield batch

    evaluate({"f": LookUp(tables["f"])}, source(), chunk_images=6, on_images=lambda _: held.append(sum(produced)))
    assert held == [6, 12, 18, 20]


def test_unlabeled_images(tables):
    result = evaluate({"f": LookUp(tables["f"]), "q": LookUp(tables["q"])}, batches(23, 4), compare=[("q", "f")])
    assert result.predictions["q"].correct is None
    assert len(result.differences["q", "f"].kl) == 23


def test_broken_logits_name_the_runtime(tables):
    broken = tables["q"].copy()
    broken[5, 3] = np.nan
    broken[6, 0] = np.inf
    runtimes = {"f": LookUp(tables["f"]), "entropy/openvino": LookUp(broken)}
    with pytest.raises(FloatingPointError, match="runtime entropy/openvino returned NaN or infinite values for 2 of 8"):
        evaluate(runtimes, batches(23, 4), chunk_images=8)


def test_no_images(tables):
    with pytest.raises(InputError, match="no images to evaluate; give a folder"):
        evaluate({"f": LookUp(tables["f"])}, [])


def test_labels_beyond_the_classes(tables):
    with pytest.raises(InputError, match="runtime f has 7 classes, but the images have labels up to 7; give a model"):
        evaluate({"f": LookUp(tables["f"])}, batches(23, 4, np.full(23, CLASSES)))


def test_half_labeled_batches(tables):
    mixed = [batches(4, 4)[0], batches(4, 4, np.zeros(4, np.int64))[0]]
    with pytest.raises(ValueError, match="1 of 2 batches have labels"):
        evaluate({"f": LookUp(tables["f"])}, mixed)


def test_pair_of_unknown_name(tables):
    with pytest.raises(ValueError, match="no runtime named float; there are f, q"):
        evaluate({"f": LookUp(tables["f"]), "q": LookUp(tables["q"])}, batches(4, 4), compare=[("q", "float")])


def test_pair_of_different_class_counts(tables):
    runtimes = {"f": LookUp(tables["f"]), "q": LookUp(tables["q"][:, :3])}
    with pytest.raises(ValueError, match=r"q returns \(3,\) for an image and f \(7,\)"):
        evaluate(runtimes, batches(4, 4), compare=[("q", "f")])


@pytest.mark.parametrize(("batch_size", "chunk_images"), [(4, 8), (1, 3), (23, 100)])
def test_the_images_of_the_largest_disagreements_are_kept_while_they_pass(tables, labels, batch_size, chunk_images):
    keeper = Keeper(("q", "f"), 5)
    result = evaluate(
        {name: LookUp(table) for name, table in tables.items()},
        batches(23, batch_size, labels),
        compare=[("q", "f")],
        chunk_images=chunk_images,
        on_chunk=keeper.see,
    )
    found = largest_disagreements(result, "q", "f", 5)
    assert {place: label for place, (_, label) in keeper.images.items()} == {
        each.position: labels[each.position] for each in found
    }
    assert all(image.unique().tolist() == [place] for place, (image, _) in keeper.images.items())


def test_two_answers_come_before_a_larger_divergence():
    float_logits = np.array([[5.0, 0.0], [0.1, 0.0], [0.0, 0.2], [3.0, 0.0]])
    other = np.array([[1.0, 0.0], [0.0, 0.1], [0.3, 0.0], [3.0, 0.0]])
    result = evaluate({"f": LookUp(float_logits), "q": LookUp(other)}, batches(4, 2), compare=[("q", "f")])
    found = largest_disagreements(result, "q", "f", 3)
    assert [each.position for each in found] == [2, 1, 0]
    assert (found[0].float_class, found[0].quantized_class) == (1, 0)
    assert found[0].float_probability == pytest.approx(1 / (1 + np.exp(-0.2)))
    assert found[2].quantized_probability == pytest.approx(1 / (1 + np.exp(-1)))
