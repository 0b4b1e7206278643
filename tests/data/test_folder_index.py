import os
import time
from pathlib import Path

import numpy as np
import pytest

from repquant.data import folder_index, index_cache
from repquant.data.datasets import open_split
from repquant.data.folder_index import index_class_folders

HOUR = 3600


@pytest.fixture
def caches(tmp_path, monkeypatch) -> Path:
    """The user's cache folder; sets of any size are cached. It is an hour after all that the test does."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    monkeypatch.setattr(index_cache, "LEAST_IMAGES", 1)
    monkeypatch.setattr(index_cache, "time_ns", lambda: time.time_ns() + HOUR * 10**9)
    return tmp_path / "caches" / "repquant"


@pytest.fixture
def split(tmp_path) -> Path:
    """Classes a (two images and a text), b (one image) and c (empty), all modified an hour ago."""
    split = tmp_path / "data" / "train"
    for name in ("a/1.JPEG", "a/2.JPEG", "a/notes.txt", "b/1.JPEG"):
        (split / name).parent.mkdir(parents=True, exist_ok=True)
        (split / name).touch()
    (split / "c").mkdir()
    set_time(split, time.time() - HOUR)
    return split


def set_time(split: Path, seconds: float) -> None:
    for folder in split.iterdir():
        os.utime(folder, (seconds, seconds))


@pytest.fixture
def listed(monkeypatch) -> list[str]:
    """Names of the folders that were listed, in order."""
    calls: list[str] = []
    real = folder_index.list_folder

    def record(folder):
        calls.append(folder.name)
        return real(folder)

    monkeypatch.setattr(folder_index, "list_folder", record)
    return calls


def contents(split: Path, classes="abc") -> tuple[list[str], list[int], int]:
    index = index_class_folders(split, list(classes))
    return list(index.names), index.labels.tolist(), index.other_files


EXPECTED = (["a/1.JPEG", "a/2.JPEG", "b/1.JPEG"], [0, 0, 1], 1)


def test_the_second_time_nothing_is_listed(caches, split, listed):
    assert contents(split) == EXPECTED
    assert listed == ["a", "b", "c"]
    assert contents(split) == EXPECTED
    assert listed == ["a", "b", "c"]
    assert [file.name[:9] for file in caches.iterdir()] == ["folder-2-"]
    assert sorted(entry.name for entry in split.iterdir()) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("change", "of_b"),
    [
        (lambda b: (b / "0.JPEG").touch(), ["b/0.JPEG", "b/1.JPEG"]),
        (lambda b: (b / "1.JPEG").unlink(), []),
        (lambda b: (b / "1.JPEG").rename(b / "2.JPEG"), ["b/2.JPEG"]),
    ],
    ids=["added", "removed", "renamed"],
)
def test_only_the_folder_that_changed_is_listed_again(caches, split, listed, change, of_b):
    contents(split)
    listed.clear()
    change(split / "b")
    assert contents(split) == (["a/1.JPEG", "a/2.JPEG", *of_b], [0, 0] + [1] * len(of_b), 1)
    assert listed == ["b"]


def test_a_copy_that_restores_the_time_of_a_folder_is_noticed(caches, split, listed):
    """As rsync -a and tar do."""
    contents(split)
    before = (split / "b").stat()
    time.sleep(0.05)  # longer than a tick of the file system's clock
    (split / "b/0.JPEG").touch()
    os.utime(split / "b", ns=(before.st_atime_ns, before.st_mtime_ns))
    listed.clear()
    assert contents(split)[0] == ["a/1.JPEG", "a/2.JPEG", "b/0.JPEG", "b/1.JPEG"]
    assert listed == ["b"]


def test_classes_come_and_go(caches, split, listed):
    contents(split)
    (split / "aa").mkdir()
    (split / "aa/7.JPEG").touch()
    listed.clear()
    assert contents(split, ("a", "aa", "b", "c")) == (
        ["a/1.JPEG", "a/2.JPEG", "aa/7.JPEG", "b/1.JPEG"], [0, 0, 1, 2], 1)  # fmt: skip
    assert listed == ["aa"]
    listed.clear()
    assert contents(split, "bc") == (["b/1.JPEG"], [0], 0)
    assert contents(split, "bc") == (["b/1.JPEG"], [0], 0)
    assert listed == []


def test_a_folder_that_changed_just_now_is_listed_again(caches, split, listed, monkeypatch):
    now = time.time() + HOUR
    monkeypatch.setattr(index_cache, "time_ns", lambda: int(now * 1e9))
    os.utime(split / "b", (now, now))
    contents(split)
    (split / "b/0.JPEG").touch()
    os.utime(split / "b", (now, now))  # within one tick of a coarse clock
    listed.clear()
    assert len(contents(split)[0]) == 4
    assert listed == ["b"]


def test_a_folder_with_an_old_time_that_was_set_just_now_is_listed_again(caches, split, listed, monkeypatch):
    changed = max((split / name).stat().st_ctime_ns for name in "abc")
    monkeypatch.setattr(index_cache, "time_ns", lambda: changed)
    contents(split)
    listed.clear()
    assert contents(split) == EXPECTED
    assert listed == ["a", "b", "c"]


def test_a_clock_that_runs_ahead_is_not_relied_on(caches, split, listed):
    set_time(split, time.time() + 2 * HOUR)
    contents(split)
    listed.clear()
    assert contents(split) == EXPECTED
    assert listed == ["a", "b", "c"]


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "text", "other arrays", "folder"])
def test_a_damaged_cache_is_rebuilt(caches, split, listed, damage):
    contents(split)
    (file,) = caches.iterdir()
    content = file.read_bytes()
    if damage == "folder":
        file.unlink()
        file.mkdir()
    elif damage == "other arrays":
        np.savez(file, other=np.zeros(3))
    else:
        middle = len(content) // 2
        flipped = (
            content[:middle] + bytes(255 - byte for byte in content[middle : middle + 400]) + content[middle + 400 :]
        )
        file.write_bytes({"empty": b"", "cut": content[:middle], "flipped": flipped, "text": b"hello"}[damage])
    listed.clear()
    assert contents(split) == EXPECTED
    assert listed == ["a", "b", "c"]
    if damage != "folder":
        assert contents(split) == EXPECTED
        assert listed == ["a", "b", "c"]


def test_any_flipped_byte_of_the_cache_leaves_the_right_index(caches, split):
    contents(split)
    (file,) = caches.iterdir()
    content = file.read_bytes()
    for place in range(0, len(content), 37):
        file.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        assert contents(split) == EXPECTED


def test_a_cache_that_can_not_be_written_is_done_without(tmp_path, split, monkeypatch):
    monkeypatch.setattr(index_cache, "LEAST_IMAGES", 1)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert contents(split) == EXPECTED


def test_a_full_disk_is_done_without(caches, split, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", fail)
    assert contents(split) == EXPECTED
    assert list(caches.iterdir()) == []


def test_two_splits_have_two_caches_and_the_home_folder_is_the_default(caches, split, tmp_path, monkeypatch):
    train, val = (index_cache.cache_file(each, "folder-1") for each in (split, split.with_name("val")))
    assert train != val
    assert index_cache.cache_file(split / ".." / "train", "folder-1") == train
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert index_cache.cache_file(split, "folder-1").parent == tmp_path / "home/.cache/repquant"


def test_a_small_set_leaves_no_file(class_folders, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    open_split(class_folders, "train")
    assert not (tmp_path / "caches").exists()


def test_a_source_from_the_cache_is_that_from_the_folder(caches, class_folders, listed):
    first, second = open_split(class_folders, "train"), open_split(class_folders, "train")
    assert [first.name(i) for i in range(7)] == [second.name(i) for i in range(7)]
    assert [second.label(i) for i in range(7)] == [0, 0, 0, 0, 1, 1, 1]
    assert second.image(6).tobytes() == first.image(6).tobytes()
    assert listed.count("cat") == 1
