"""Small image folders, made on the spot."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SaveImage = Callable[..., Path]


@pytest.fixture
def save_image(tmp_path: Path) -> SaveImage:
    """Write an image below tmp_path; the content follows from the name, so no two files are equal."""

    def save(name: str, mode: str = "RGB", size: tuple[int, int] = (8, 6), **options: object) -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(list(name.encode())).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(noise).convert(mode).save(file, **options)
        return file

    return save


@pytest.fixture
def class_folders(tmp_path: Path, save_image: SaveImage) -> Path:
    """Two classes, 4 and 3 training images, 2 and 1 validation images."""
    for split, counts in (("train", {"cat": 4, "dog": 3}), ("val", {"cat": 2, "dog": 1})):
        for class_name, count in counts.items():
            for index in range(count):
                save_image(f"{split}/{class_name}/{index}.png")
    return tmp_path
