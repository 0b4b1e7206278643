import errno
import os
from pathlib import Path

import pytest

from repquant.data.builtin_set import BuiltinSet
from repquant.data.datasets import open_split
from repquant.data.decoding import UnreadableImageError
from repquant.errors import InputError


def names(source) -> list[str]:
    return [source.name(index) for index in range(len(source))]


def labels(source) -> list[int | None]:
    return [source.label(index) for index in range(len(source))]


def test_class_folders_in_order_of_their_names(class_folders):
    source = open_split(class_folders, "train")
    assert names(source) == ["cat/0.png", "cat/1.png", "cat/2.png", "cat/3.png", "dog/0.png", "dog/1.png", "dog/2.png"]
    assert labels(source) == [0, 0, 0, 0, 1, 1, 1]
    assert source.classes == ("cat", "dog")
    assert len(open_split(str(class_folders), "val")) == 3


def test_image_and_bytes_are_those_of_the_file(class_folders):
    source = open_split(class_folders, "val")
    file = class_folders / "val" / "dog" / "0.png"
    assert source.name(2) == "dog/0.png"
    assert source.read_bytes(2) == file.read_bytes()
    assert source.image(2).size == (8, 6)


def test_order_does_not_depend_on_the_file_system(class_folders, monkeypatch):
    expected = names(open_split(class_folders, "train"))

    class Reversed:
        def __init__(self, folder):
            with scandir(folder) as entries:
                self.entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *_):
            pass

    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", Reversed)
    assert names(open_split(class_folders, "train")) == expected


def test_extensions_in_any_case_and_nothing_else(save_image, tmp_path):
    kept = ["a.JPG", "b.jpeg", "c.JPEG", "d.Png", "e.bmp", "f.webp", "g.ppm", "h.tif", "i.TIFF"]
    for name in [*kept, ".hidden.png", "deeper/nested.png"]:
        save_image(f"train/x/{name}")
    save_image("train/.cache/thumbnail.png")
    (tmp_path / "train" / "x" / "labels.csv").touch()
    source = open_split(tmp_path, "train")
    assert names(source) == [f"x/{name}" for name in kept]
    assert source.classes == ("x",)
    assert all(source.image(index).mode == "RGB" for index in range(len(source)))


def test_an_empty_class_folder_keeps_its_label(save_image, tmp_path):
    (tmp_path / "val" / "a").mkdir(parents=True)
    save_image("val/b/1.png")
    source = open_split(tmp_path, "val")
    assert source.classes == ("a", "b")
    assert labels(source) == [1]


@pytest.mark.parametrize("folder", [".", "train"])
def test_images_without_class_folders_are_unlabeled(save_image, tmp_path, folder):
    for name in ("2.png", "10.png"):
        save_image(f"{folder}/{name}")
    (tmp_path / folder / "notes").mkdir()
    source = open_split(tmp_path, "train")
    assert names(source) == ["10.png", "2.png"]
    assert labels(source) == [None, None]
    assert source.classes is None
    assert source.read_bytes(1) == (tmp_path / folder / "2.png").read_bytes()


def test_unlabeled_training_images_beside_labeled_validation_images(save_image, tmp_path):
    save_image("train/1.png")
    save_image("val/cat/1.png")
    assert open_split(tmp_path, "train").classes is None
    assert open_split(tmp_path, "val").classes == ("cat",)


def test_builtin():
    assert isinstance(open_split("builtin", "val"), BuiltinSet)


def test_a_folder_may_be_called_builtin(class_folders, monkeypatch):
    monkeypatch.chdir(class_folders)
    Path("builtin").symlink_to(".")
    assert open_split(Path("builtin"), "train").classes == ("cat", "dog")


def test_a_file_that_vanished(class_folders):
    source = open_split(class_folders, "val")
    (class_folders / "val/cat/0.png").unlink()
    with pytest.raises(UnreadableImageError, match=r"cat/0\.png: no such file"):
        source.read_bytes(0)


def message(data: Path, split: str = "train") -> str:
    with pytest.raises(InputError) as caught:
        open_split(data, split)
    return str(caught.value)


def test_missing_folder(tmp_path):
    assert f"{tmp_path / 'gone'} does not exist; give a folder with train/ and val/" in message(tmp_path / "gone")


def test_archive_instead_of_a_folder(tmp_path):
    (tmp_path / "data.zip").touch()
    assert "is a file; unpack it" in message(tmp_path / "data.zip")


def test_empty_folder(tmp_path):
    assert f"no train/ in {tmp_path}; found nothing: it is empty; expected <data>/train/<class>/" in message(tmp_path)


def test_empty_split(tmp_path):
    (tmp_path / "val" / "cat").mkdir(parents=True)
    assert f"no images in {tmp_path / 'val'}: it is empty; expected" in message(tmp_path, "val")


def test_missing_split_says_what_there_is(save_image, tmp_path):
    save_image("val/cat/1.png")
    (tmp_path / "README").touch()
    assert f"no train/ in {tmp_path}; found val/, 1 other files; expected" in message(tmp_path)


def test_a_split_given_instead_of_the_data_folder(class_folders):
    assert f"no val/ in {class_folders / 'train'}; found cat/, dog/; expected" in message(
        class_folders / "train", "val"
    )


def test_many_folders_are_not_all_listed(tmp_path):
    for index in range(7):
        (tmp_path / f"n{index}").mkdir()
    assert "found n0/, n1/, n2/, n3/, n4/, ...; expected" in message(tmp_path)


def test_unlabeled_images_have_no_validation_split(save_image, tmp_path):
    save_image("1.png")
    assert "images without labels, which can calibrate but not measure accuracy" in message(tmp_path, "val")


def test_files_but_no_image(tmp_path):
    (tmp_path / "train" / "cat").mkdir(parents=True)
    for name in ("1.txt", "cat/2.gif", "cat/3.npy"):
        (tmp_path / "train" / name).touch()
    assert "none of the 3 files in" in message(tmp_path)
    assert "image files end in .bmp, .jpeg, .jpg" in message(tmp_path)


def test_splits_with_different_classes_would_mislabel(class_folders, save_image):
    save_image("train/bird/1.png")
    save_image("val/emu/1.png")
    for split in ("train", "val"):
        assert "have different classes" in message(class_folders, split)
        assert "(only in train/: bird; only in val/: emu)" in message(class_folders, split)


def test_many_differing_classes_are_not_all_listed(class_folders):
    for index in range(9):
        (class_folders / "val" / f"n{index}").mkdir()
    assert "(only in val/: n0, n1, n2, n3, n4 and 4 more)" in message(class_folders)


def test_unknown_split(class_folders):
    assert "there is no split 'test'; choose train or val" in message(class_folders, "test")


def test_a_folder_that_may_not_be_listed(class_folders, monkeypatch):
    def refuse(folder):
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    monkeypatch.setattr(os, "scandir", refuse)
    assert f"can't list {class_folders / 'train'}: Permission denied" in message(class_folders)


def test_a_link_to_itself_is_an_unreadable_image_of_its_class(class_folders):
    link = class_folders / "train" / "cat" / "x.png"
    link.symlink_to(link)
    source = open_split(class_folders, "train")
    assert names(source).count("cat/x.png") == 1
    with pytest.raises(UnreadableImageError, match="too many levels of symbolic links"):
        source.image(names(source).index("cat/x.png"))
