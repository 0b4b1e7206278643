"""Any source as tar files in WebDataset's format."""

import io
from pathlib import Path

from PIL import Image

from repquant.atomic import replace_file
from repquant.data.datasets import ImageSource
from repquant.data.folder_index import EXTENSIONS
from repquant.data.shards import CLASSES_FILE
from repquant.errors import InputError


def write_shards(source: ImageSource, folder: Path, images_per_shard: int) -> list[Path]:
    """Write a source as WebDataset shards, with `classes.txt` where it is labeled; needs the extra `train`.

    The files are stored as they are; those of the built-in set, which are not of an image format, as PNG.

    Args:
        source: where the images come from.
        folder: where `000000.tar`, `000001.tar`, ... are written, for example `<data>/train`; made where missing.
        images_per_shard: at most so many; 10,000 photographs are about 1 GB.

    Returns:
        The paths of the shards.

    Raises:
        InputError: the library is not installed, `images_per_shard` is below 1, the folder holds shards already or
            can't be written, or an image can't be read.
    """
    if images_per_shard < 1:
        raise InputError(f"{images_per_shard} images per shard is too few; give at least 1, 10000 is usual")
    try:
        from webdataset import TarWriter  # type: ignore[import-untyped]
    except ImportError as error:
        raise InputError("shards are written by webdataset, which is missing: pip install 'repquant[train]'") from error
    if any(folder.glob("*.tar")):
        raise InputError(f"{folder} holds shards already, with which new ones would mix; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    shards = []
    for number, start in enumerate(range(0, len(source), images_per_shard)):
        shards.append(folder / f"{number:06d}.tar")
        with replace_file(shards[-1]) as temporary, TarWriter(str(temporary), encoder=False, mtime=0) as writer:
            for index in range(start, min(start + images_per_shard, len(source))):
                writer.write(_sample(source, index))
    if source.classes is not None:
        (folder / CLASSES_FILE).write_text("".join(f"{name}\n" for name in source.classes), encoding="utf-8")
    return shards


def _sample(source: ImageSource, index: int) -> dict[str, str | bytes]:
    extension = Path(source.name(index)).suffix.lower()
    sample: dict[str, str | bytes] = {"__key__": f"{index:08d}"}
    if extension in EXTENSIONS:
        sample[extension[1:]] = source.read_bytes(index)
    else:
        sample["png"] = _png(source.image(index))
    label = source.label(index)
    return sample if label is None else sample | {"cls": str(label).encode()}


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()
