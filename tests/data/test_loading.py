import multiprocessing
import subprocess
import sys

import numpy as np
import pytest
import torch

from repquant.data.builtin_set import BuiltinSet
from repquant.data.datasets import open_split
from repquant.data.decoding import UnreadableImageError
from repquant.data.loading import Loader
from repquant.data.transforms import EvalTransform
from repquant.errors import InputError

TRANSFORM = EvalTransform(image_size=4, crop_ratio=1.0)


def expected_images(source, indices) -> torch.Tensor:
    return TRANSFORM.normalize(torch.stack([TRANSFORM(source.image(index)) for index in indices]))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")  # Python 3.12, torch's default
def test_batches_are_normalized_images_in_order(class_folders, workers):
    source = open_split(class_folders, "train")
    loader = Loader(source, TRANSFORM, batch_size=3, workers=workers)
    batches = list(loader)
    assert (len(loader), loader.images) == (3, 7)
    assert [len(batch.images) for batch in batches] == [3, 3, 1]
    assert torch.cat([batch.labels for batch in batches]).tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert torch.equal(torch.cat([batch.images for batch in batches]), expected_images(source, range(7)))
    for batch in batches:
        assert batch.images.dtype == torch.float32
        assert batch.images.is_contiguous()
        assert batch.labels.dtype == torch.int64
        assert batch.skipped == ()


def test_a_second_pass_gives_the_same_and_leaves_the_global_random_state_alone(class_folders):
    loader = Loader(open_split(class_folders, "train"), TRANSFORM, batch_size=4)
    state = torch.get_rng_state()
    first, second = (torch.cat([batch.images for batch in loader]) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_batch_larger_than_the_set(class_folders):
    loader = Loader(open_split(class_folders, "val"), TRANSFORM, batch_size=1000)
    (batch,) = loader
    assert len(loader) == 1
    assert batch.images.shape == (3, 3, 4, 4)


def test_chosen_indices_in_the_order_given(class_folders):
    source = open_split(class_folders, "train")
    batches = list(Loader(source, TRANSFORM, batch_size=2, indices=(6, 0, 3)))
    assert [batch.labels.tolist() for batch in batches] == [[1, 0], [0]]
    assert torch.equal(torch.cat([batch.images for batch in batches]), expected_images(source, (6, 0, 3)))


def test_unlabeled_images_have_no_labels(save_image, tmp_path):
    save_image("1.png")
    (batch,) = Loader(open_split(tmp_path, "train"), TRANSFORM, batch_size=2)
    assert batch.labels is None


def test_images_of_every_size_and_mode_share_a_batch(save_image, tmp_path):
    save_image("a.png", "RGBA", size=(9, 5))
    save_image("b.jpg", "L", size=(20, 30))
    save_image("c.png", size=(1, 1))
    (batch,) = Loader(open_split(tmp_path, "train"), EvalTransform(image_size=(6, 10)), batch_size=8)
    assert batch.images.shape == (3, 3, 6, 10)
    assert batch.images[2].flatten(1).std(dim=1).max() < 1e-6


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_what_a_terminal_or_a_scheduler_sends_to_all_processes_does_not_end_the_workers(class_folders, name):
    before = multiprocessing.active_children()
    batches = iter(Loader(open_split(class_folders, "train"), TRANSFORM, batch_size=1, workers=2))
    next(batches)
    workers = [child.pid for child in multiprocessing.active_children() if child not in before]
    assert len(workers) == 2
    send = f"import os, signal; [os.kill(worker, signal.{name}) for worker in {workers}]"
    subprocess.run([sys.executable, "-c", send], check=True)  # the parent itself could end them
    assert len(list(batches)) == 6


CRASH = """
import torch
from torch.utils.data import Dataset
from repquant.data.loading import DecodedBatch, decode_ahead

class Endless(Dataset):
    def __len__(self):
        return 10**6

    def __getitem__(self, index):
        return DecodedBatch(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), None, [])

batches = iter(decode_ahead(Endless(), workers=2))
next(batches)
raise RuntimeError("crash")
"""


def test_the_workers_of_a_process_that_crashes_end_with_it():
    done = subprocess.run([sys.executable, "-c", CRASH], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stderr.strip().endswith("RuntimeError: crash")


def test_builtin_set():
    batch = next(iter(Loader(BuiltinSet("val"), EvalTransform(image_size=28, crop_ratio=1.0), batch_size=5)))
    assert batch.images.shape == (5, 3, 28, 28)
    assert batch.labels.tolist() == [9, 2, 1, 1, 6]


@pytest.fixture
def damaged(class_folders):
    """The training split with images 1, 4, 5 and 6 of 0..6 unreadable."""
    (class_folders / "train/cat/1.png").write_bytes(b"")
    for name in ("dog/0.png", "dog/1.png", "dog/2.png"):
        file = class_folders / "train" / name
        file.write_bytes(file.read_bytes()[:60])
    return open_split(class_folders, "train")


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_an_unreadable_image_is_named(damaged, workers):
    with pytest.raises(UnreadableImageError, match=r"train/cat/1\.png: not an image .*`skip_unreadable=True`"):
        list(Loader(damaged, TRANSFORM, batch_size=4, workers=workers))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_unreadable_images_are_skipped_on_request(damaged, workers):
    loader = Loader(damaged, TRANSFORM, batch_size=2, workers=workers, skip_unreadable=True)
    for _ in range(2):  # the second pass counts none twice
        batches = list(loader)
        assert [len(batch.images) for batch in batches] == [1, 2]  # the batches (4, 5) and (6,) have nothing to show
        assert [batch.skipped for batch in batches] == [("cat/1.png",), ()]
        assert torch.equal(torch.cat([batch.images for batch in batches]), expected_images(damaged, (0, 2, 3)))
        assert list(loader.skipped) == ["cat/1.png", "dog/0.png", "dog/1.png", "dog/2.png"]
    assert loader.images == 7
    assert "truncated" in loader.skipped["dog/0.png"]
    first, last = loader.examples((0, 2))
    assert (first.name, first.label, last.name) == ("cat/0.png", "cat", damaged.name(3))
    assert torch.equal(last.pixels, TRANSFORM(damaged.image(3)))


def test_when_no_image_can_be_read(damaged):
    loader = Loader(damaged, TRANSFORM, batch_size=2, skip_unreadable=True, indices=(4, 5, 6))
    with pytest.raises(InputError, match=r"none of the 3 images can be read \(the first, dog/0\.png: .*check the data"):
        list(loader)


def test_an_image_that_the_transform_refuses_counts_as_unreadable(save_image, tmp_path):
    save_image("line.png", "L", size=(100_000, 1))
    save_image("usual.png")
    loader = Loader(open_split(tmp_path, "train"), EvalTransform(image_size=224), batch_size=2, skip_unreadable=True)
    (batch,) = loader
    assert batch.skipped == ("line.png",)
    assert "100000 x 1 pixels would be resized" in loader.skipped["line.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch size 0 is not positive"),
        ({"batch_size": 1, "workers": -1}, "-1 workers is negative"),
        ({"batch_size": 1, "indices": ()}, "there are no images to load"),
        ({"batch_size": 1, "indices": (0, 3)}, r"indices 0\.\.3 are outside 0\.\.2"),
        ({"batch_size": 1, "indices": np.array([-1])}, r"indices -1\.\.-1 are outside 0\.\.2"),
    ],
)
def test_bad_arguments(class_folders, arguments, message):
    with pytest.raises(InputError, match=message):
        Loader(open_split(class_folders, "val"), TRANSFORM, **arguments)
