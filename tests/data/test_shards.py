import os
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch
from webdataset import TarWriter
from webdataset.tariterators import group_by_keys, tar_file_expander

from repquant.data import index_cache
from repquant.data.builtin_set import BuiltinSet
from repquant.data.datasets import open_split
from repquant.data.decoding import UnreadableImageError
from repquant.data.loading import Loader
from repquant.data.shard_writing import write_shards
from repquant.data.transforms import EvalTransform
from repquant.errors import InputError

TRANSFORM = EvalTransform(image_size=4)


@pytest.fixture
def folder(save_image, tmp_path) -> Path:
    """Seven images of two classes as class folders in `folder/`, which a dot in a name does not disturb."""
    for name in ("cat/1.v2.png", "cat/2.jpg", "cat/3.JPEG", "dog/1.png", "dog/2.png", "dog/3.png", "dog/4.webp"):
        save_image(f"folder/train/{name}")
    return tmp_path / "folder"


@pytest.fixture
def shards(folder, tmp_path) -> Path:
    """The same images in shards of three."""
    write_shards(open_split(folder, "train"), tmp_path / "shards" / "train", images_per_shard=3)
    return tmp_path / "shards"


def write(path: Path, *samples: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with TarWriter(str(path), encoder=False) as writer:
        for sample in samples:
            writer.write(sample)


def image_bytes(save_image, name: str = "one.png") -> bytes:
    return save_image(name).read_bytes()


def test_shards_hold_the_same_source_as_the_folder(folder, shards):
    expected, source = open_split(folder, "train"), open_split(shards, "train")
    assert sorted(file.name for file in (shards / "train").iterdir()) == [
        "000000.tar", "000001.tar", "000002.tar", "classes.txt"]  # fmt: skip
    assert source.classes == expected.classes == ("cat", "dog")
    assert len(source) == 7
    for index in range(7):
        assert source.label(index) == expected.label(index)
        assert source.read_bytes(index) == expected.read_bytes(index)
        assert source.image(index).tobytes() == expected.image(index).tobytes()
    assert [source.name(index) for index in (0, 2, 6)] == [
        "000000.tar/00000000.png", "000000.tar/00000002.jpeg", "000002.tar/00000006.webp"]  # fmt: skip


def test_the_library_reads_what_is_written(shards, folder):
    expected = open_split(folder, "train")
    samples = []
    for path in sorted((shards / "train").glob("*.tar")):
        with path.open("rb") as stream:
            samples += group_by_keys(tar_file_expander([{"url": path.name, "stream": stream}]))
    assert [int(sample["cls"]) for sample in samples] == [expected.label(index) for index in range(7)]
    assert samples[1]["jpg"] == expected.read_bytes(1)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")  # Python 3.12, torch's default
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_every_image_once_over_workers_and_ranks(folder, shards, workers, ranks):
    source, expected = open_split(shards, "train"), open_split(folder, "train")
    seen = []
    for rank in range(ranks):
        loader = Loader(source, TRANSFORM, 2, workers, indices=range(len(source))[rank::ranks])
        seen += [image for batch in loader for image in batch.images]
    order = [index for rank in range(ranks) for index in range(7)[rank::ranks]]
    whole = TRANSFORM.normalize(torch.stack([TRANSFORM(expected.image(index)) for index in order]))
    assert torch.equal(torch.stack(seen), whole)


def test_members_in_any_form_that_the_library_reads(save_image, tmp_path):
    image = image_bytes(save_image)
    write(
        tmp_path / "val/a.tar",
        {"__key__": "x/n.1", "seg.png": b"", "cls": b"2\n"},  # the extension .1.seg.png is no image's
        {"__key__": "x/2", "PNG": image, "json": b'{"label": 1, "height": 6}', "txt": b"a dog"},
        {"__key__": "y/2", "png": image, "json": b'{"cls": 0}'},
        {"__key__": "y/3", "png": image, "json": b'{"height": 6}', "cls": b" 1 "},
    )
    source = open_split(tmp_path, "val")
    assert [source.name(index) for index in range(3)] == ["a.tar/x/2.PNG", "a.tar/y/2.png", "a.tar/y/3.png"]
    assert [source.label(index) for index in range(3)] == [1, 0, 1]
    assert source.classes == ("0", "1")


def test_gnu_and_pax_archives_with_long_names(save_image, tmp_path):
    (tmp_path / "train").mkdir()
    for number, form in enumerate((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)):
        with tarfile.open(tmp_path / f"train/{number}.tar", "w", format=form) as archive:
            archive.add(save_image(f"{number}.png"), arcname=f"{'deep/' * 40}{number}.png")
    source = open_split(tmp_path, "train")
    assert [source.image(index).size for index in range(2)] == [(8, 6)] * 2
    assert source.classes is None
    assert source.label(0) is None


def test_class_folders_beside_a_download_stay_class_folders(folder, tmp_path):
    (folder / "train/download.tar").touch()
    assert open_split(folder, "train").classes == ("cat", "dog")
    assert len(open_split(folder, "train")) == 7


def test_the_builtin_set_is_written_as_png(tmp_path):
    class Ten(BuiltinSet):
        def __len__(self) -> int:
            return 10

    write_shards(Ten("val"), tmp_path / "val", images_per_shard=10)
    source = open_split(tmp_path, "val")
    assert source.classes == BuiltinSet.classes
    for index in range(10):
        assert source.image(index).tobytes() == Ten("val").image(index).tobytes()
        assert source.label(index) == Ten("val").label(index)


@pytest.fixture
def opened(tmp_path, monkeypatch) -> list[str]:
    """Names of the shards whose headers were read, in order. Any are cached, and it is an hour later."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    monkeypatch.setattr(index_cache, "LEAST_IMAGES", 1)
    monkeypatch.setattr(index_cache, "time_ns", lambda: time.time_ns() + 3600 * 10**9)
    opened: list[str] = []
    real = tarfile.open

    def record(path, *arguments):
        opened.append(Path(path).name)
        return real(path, *arguments)

    monkeypatch.setattr(tarfile, "open", record)
    return opened


def test_the_headers_are_read_once(shards, opened):
    first, second = open_split(shards, "train"), open_split(shards, "train")
    assert opened == ["000000.tar", "000001.tar", "000002.tar"]
    assert [second.read_bytes(index) for index in range(7)] == [first.read_bytes(index) for index in range(7)]
    assert [second.name(index) for index in range(7)] == [first.name(index) for index in range(7)]
    assert [second.label(index) for index in range(7)] == [first.label(index) for index in range(7)]
    (shards / "train/000001.tar").write_bytes((shards / "train/000002.tar").read_bytes())
    third = open_split(shards, "train")
    assert opened[3:] == ["000001.tar"]
    assert [third.name(index) for index in range(len(third))][3:] == [
        "000001.tar/00000006.webp", "000002.tar/00000006.webp"]  # fmt: skip


def test_a_shard_of_the_same_size_and_time_with_other_content_is_read_again(shards, opened):
    open_split(shards, "train")
    shard = shards / "train/000000.tar"
    before, content = shard.stat(), bytearray(shard.read_bytes())
    with tarfile.open(shard) as archive:
        content[archive.getmember("00000001.cls").offset_data] = ord("1")
    time.sleep(0.05)  # longer than a tick of the file system's clock
    shard.write_bytes(content)
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))
    opened.clear()
    assert open_split(shards, "train").label(1) == 1
    assert opened == ["000000.tar"]


def test_a_shard_that_was_written_just_now_is_read_again(shards, opened, monkeypatch):
    written = max(shard.stat().st_ctime_ns for shard in (shards / "train").iterdir())
    monkeypatch.setattr(index_cache, "time_ns", lambda: written)
    for _ in range(2):
        open_split(shards, "train")
    assert opened == ["000000.tar", "000001.tar", "000002.tar"] * 2


def message(data: Path, split: str = "train") -> str:
    with pytest.raises(InputError) as caught:
        open_split(data, split)
    return str(caught.value)


@pytest.mark.parametrize("left", [0, 100, 512, 700, 1024, 2048, -10240])
def test_a_truncated_shard_is_named(shards, left):
    shard = shards / "train/000001.tar"
    content = shard.read_bytes().rstrip(b"\0")
    content += bytes(-len(content) % 512)
    shard.write_bytes(content[:left])
    assert f"can't read shard {shard}: " in message(shards)


def test_a_shard_without_its_last_member_is_noticed(save_image, tmp_path):
    sample = {"png": image_bytes(save_image), "cls": b"0"}
    write(tmp_path / "train/0.tar", {"__key__": "1"} | sample, {"__key__": "2"} | sample)
    shard = tmp_path / "train/0.tar"
    with tarfile.open(shard) as archive:
        end_of_first = archive.getmembers()[2].offset
    shard.write_bytes(shard.read_bytes()[:end_of_first])  # tarfile itself takes this for a whole archive
    assert "0.tar: it breaks off before its end" in message(tmp_path)


def test_a_damaged_header_between_is_noticed(shards):
    shard = shards / "train/000000.tar"
    with tarfile.open(shard) as archive:
        place = archive.getmembers()[3].offset
    content = bytearray(shard.read_bytes())
    content[place : place + 200] = b"\xff" * 200
    shard.write_bytes(content)
    assert "000000.tar: it breaks off before its end, or a header in it is damaged" in message(shards)


def test_a_compressed_shard_is_refused(shards):
    import gzip

    shard = shards / "train/000000.tar"
    shard.write_bytes(gzip.compress(shard.read_bytes()))
    assert f"can't read shard {shard}" in message(shards)


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        ([{"cls": b"cat"}], "a.tar: 0.cls does not hold a number"),
        ([{"json": b'{"label": "cat"}'}], "a.tar: 0.json does not hold a number"),
        ([{"json": b"{"}], "a.tar: 0.json does not hold a number"),
        ([{"cls": b"10000000000"}], "the label in 0.cls is 10000000000, not from 0 to 999999"),
        ([{"json": b"[" * 10**5}], "0.json does not hold a number"),
        ([{"json": b'{"label": Infinity}'}], "0.json does not hold a number"),
        ([{"cls": b"-1"}], "the label in 0.cls is -1, not from 0 to 999999"),
        ([{"cls": b"0", "jpg": b""}], "0.jpg and 0.png are two images of one sample"),
        ([{"cls": b"0"}, {}], r"1 of the 2 images in .* have no label (the first: a.tar/1.png)"),
    ],
)
def test_samples_that_make_no_sense(save_image, tmp_path, samples, expected):
    image = image_bytes(save_image)
    write(tmp_path / "train/a.tar", *({"__key__": str(i), "png": image} | each for i, each in enumerate(samples)))
    text = message(tmp_path)
    assert all(part in text for part in expected.split(" .* "))


def test_a_label_beyond_the_classes(shards):
    (shards / "train/classes.txt").write_text("cat\n")
    assert "has the label 1, but classes.txt there names 1 classes" in message(shards)


def test_a_shard_without_images(tmp_path):
    write(tmp_path / "train/a.tar", {"__key__": "0", "cls": b"1"})
    assert f"none of the 1 tar files in {tmp_path / 'train'} holds an image" in message(tmp_path)


def test_splits_with_different_classes_would_mislabel(shards, save_image):
    write(shards / "val/0.tar", {"__key__": "0", "png": image_bytes(save_image), "cls": b"0"})
    assert open_split(shards, "train").classes == ("cat", "dog")
    (shards / "val/classes.txt").write_text("dog\ncat\n")
    assert "have different classes, so their labels would disagree (their order differs)" in message(shards)
    (shards / "val/classes.txt").write_text("cat\nemu\n")
    assert "(only in train/: dog; only in val/: emu)" in message(shards)


def test_an_unreadable_image_is_named(save_image, tmp_path):
    write(
        tmp_path / "train/a.tar", {"__key__": "0", "png": b"nothing"}, {"__key__": "1", "png": image_bytes(save_image)}
    )
    source = open_split(tmp_path, "train")
    with pytest.raises(UnreadableImageError, match=r"train/a\.tar/0\.png: not an image"):
        source.image(0)
    (tmp_path / "train/a.tar").unlink()
    with pytest.raises(UnreadableImageError, match=r"a\.tar/1\.png: no such file"):
        source.read_bytes(1)


def test_writing_needs_a_sensible_size_and_the_library(folder, tmp_path, monkeypatch):
    source = open_split(folder, "train")
    with pytest.raises(InputError, match="0 images per shard is too few"):
        write_shards(source, tmp_path / "out", 0)
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(InputError, match=r"webdataset, which is missing: pip install 'repquant\[train\]'"):
        write_shards(source, tmp_path / "out", 3)
    assert not (tmp_path / "out").exists()


def test_shards_of_two_writings_do_not_mix(shards):
    with pytest.raises(InputError, match="holds shards already"):
        write_shards(open_split(shards, "train"), shards / "train", 7)


def test_writing_twice_gives_the_same_bytes(folder, tmp_path):
    source = open_split(folder, "train")
    first, second = (write_shards(source, tmp_path / name, 4)[0].read_bytes() for name in ("one", "two"))
    assert first == second


def test_only_regular_files_are_shards(tmp_path):
    (tmp_path / "train").mkdir()
    os.mkfifo(tmp_path / "train" / "000000.tar")
    assert "Not a regular file" in message(tmp_path)
