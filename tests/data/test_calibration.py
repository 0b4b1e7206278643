import hashlib
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repquant.data.calibration import select, subset_sha256
from repquant.data.datasets import open_split
from repquant.data.decoding import UnreadableImageError
from repquant.errors import InputError


class Listed:
    """A source that holds names and labels only; an image's content is its name backwards."""

    def __init__(self, labels: list[int | None], names: list[str] | None = None) -> None:
        self.labels = labels
        self.names = names or [f"{label}/{index}.jpg" for index, label in enumerate(labels)]

    @property
    def classes(self):
        return None

    def __len__(self) -> int:
        return len(self.labels)

    def label(self, index: int) -> int | None:
        return self.labels[index]

    def name(self, index: int) -> str:
        return self.names[index]

    def read_bytes(self, index: int) -> bytes:
        return self.names[index][::-1].encode(errors="surrogateescape")


label_lists = st.lists(st.integers(0, 5), min_size=1, max_size=60)


@given(labels=label_lists, seed=st.integers(), data=st.data())
def test_subset_is_stratified(labels, seed, data):
    count = data.draw(st.integers(1, len(labels)))
    indices = select(Listed(labels), count, seed).indices
    assert len(set(indices)) == count
    drawn, available = Counter(labels[index] for index in indices), Counter(labels)
    most = max(drawn.values())
    assert all(drawn[label] >= min(most - 1, available[label]) for label in available)


@given(labels=label_lists | st.lists(st.none(), min_size=1, max_size=60), seed=st.integers(), data=st.data())
def test_a_smaller_draw_is_the_beginning_of_a_larger_one(labels, seed, data):
    source = Listed(labels)
    larger = data.draw(st.integers(1, len(labels)))
    smaller = data.draw(st.integers(1, larger))
    assert select(source, smaller, seed).indices == select(source, larger, seed).indices[:smaller]


@given(labels=label_lists, seed=st.integers(), data=st.data())
def test_draw_follows_the_names_and_not_their_order(labels, seed, data):
    source = Listed(labels)
    order = data.draw(st.permutations(range(len(labels))))
    shuffled = Listed([labels[index] for index in order], [source.names[index] for index in order])
    count = data.draw(st.integers(1, len(labels)))
    names = [source.names[index] for index in select(source, count, seed).indices]
    assert [shuffled.names[index] for index in select(shuffled, count, seed).indices] == names


def test_the_draw_is_the_documented_one_on_every_machine():
    source = Listed([None] * 100, [f"{index}.jpg" for index in range(100)])
    by_ticket = sorted(range(100), key=lambda index: hashlib.sha256(f"7/{index}.jpg".encode()).hexdigest())
    assert select(source, 5, seed=7).indices == tuple(by_ticket[:5]) == (86, 90, 9, 1, 60)


def test_seeds_differ():
    source = Listed([None] * 1000)
    draws = [set(select(source, 100, seed).indices) for seed in range(20)]
    overlaps = [len(draws[i] & draws[j]) for i in range(20) for j in range(i)]
    assert 8 < sum(overlaps) / len(overlaps) < 12  # 10 expected of independent draws


def test_hash_is_the_documented_one():
    source = Listed([None] * 3, ["a", "bc", "déf"])
    expected = hashlib.sha256(b"a\0" + (1).to_bytes(8, "big") + b"a")
    expected.update("déf".encode() + b"\0" + (4).to_bytes(8, "big") + "féd".encode())
    assert subset_sha256(source, (2, 0)) == subset_sha256(source, (0, 2)) == expected.hexdigest()


def test_hash_is_of_the_chosen_images(class_folders):
    source = open_split(class_folders, "train")
    subset = select(source, 3, seed=1)
    assert subset.seed == 1
    assert subset.sha256 == subset_sha256(source, subset.indices)
    assert select(source, 3, seed=1) == subset

    spared = next(index for index in range(7) if index not in subset.indices)
    (class_folders / "train" / source.name(spared)).write_bytes(b"other")
    assert select(source, 3, seed=1).sha256 == subset.sha256
    (class_folders / "train" / source.name(subset.indices[0])).write_bytes(b"other")
    assert select(source, 3, seed=1).indices == subset.indices
    assert select(source, 3, seed=1).sha256 != subset.sha256


def test_unreadable_images_are_refused_or_hashed_by_their_name_alone(class_folders):
    (class_folders / "train" / "cat" / "0.png").unlink()
    (class_folders / "train" / "cat" / "0.png").symlink_to("nowhere.png")
    source = open_split(class_folders, "train")
    with pytest.raises(UnreadableImageError, match=r"can't read image .*0\.png: no such file"):
        select(source, len(source))

    found = select(source, len(source), skip_unreadable=True)
    expected = hashlib.sha256(b"cat/0.png\0")
    for index in range(1, len(source)):
        content = source.read_bytes(index)
        expected.update(source.name(index).encode() + b"\0" + len(content).to_bytes(8, "big") + content)
    assert found.sha256 == expected.hexdigest()


def test_a_name_that_is_not_unicode():
    assert len(select(Listed([None], ["\udcff.jpg"]), 1).sha256) == 64


@pytest.mark.parametrize("count", [0, -1])
def test_too_few(count):
    with pytest.raises(InputError, match=f"^{count} calibration images is too few; give at least 1"):
        select(Listed([0, 1]), count)


def test_too_many():
    with pytest.raises(InputError, match="3 calibration images were asked for, but there are 2; give at most that"):
        select(Listed([0, 1]), 3)
