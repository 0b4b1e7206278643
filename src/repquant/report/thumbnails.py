"""The small pictures beside a record: `thumbnails.json`. A record is whole without them."""

import base64
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from repquant.data.loading import Example
from repquant.data.thumbnails import thumbnail
from repquant.report.reading import parsed, read_file, write_text

SCHEMA_VERSION = 1
FILE = "thumbnails.json"

CALIBRATION, EVALUATION = "calibration", "evaluation"
"""What pictures are of: the start of their names."""

_KINDS = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}


@dataclass(frozen=True, kw_only=True)
class Thumbnails:
    """Pictures by what they are of.

    Attributes:
        images: "role: name of the image" -> PNG or JPEG file in base64.
        schema_version: of this layout.
    """

    images: dict[str, str]
    schema_version: int = SCHEMA_VERSION

    @classmethod
    def of(cls, examples: Mapping[str, Iterable[Example]]) -> Self:
        """Make the pictures of images, by their role."""
        return cls(
            images={
                name_of(role, example.name): thumbnail(example.pixels)
                for role, images in examples.items()
                for example in images
                if example.pixels is not None
            }
        )

    def address(self, role: str, name: str) -> str | None:
        """Return the picture as the address of an `img`; None where there is none."""
        text = self.images.get(name_of(role, name))
        return None if text is None else f"data:{_kind(text)};base64,{text}"


def name_of(role: str, name: str) -> str:
    """Return the name of a picture."""
    return f"{role}: {name}"


def write_thumbnails(thumbnails: Thumbnails, path: Path) -> None:
    """Write pictures as JSON, whole or not at all.

    Raises:
        InputError: the folder of `path` does not exist or can't be written.
    """
    write_text(json.dumps(asdict(thumbnails), indent=2, ensure_ascii=False) + "\n", path)


def read_thumbnails(path: Path) -> Thumbnails:
    """Read what `write_thumbnails` wrote.

    Raises:
        InputError: there is no such file, or something in it is no picture.
    """
    return read_file(path, _parsed, "a file of pictures", f"the {FILE} of a run, or remove it")


def _parsed(text: str) -> Thumbnails:
    thumbnails = parsed(Thumbnails, text, SCHEMA_VERSION)
    for name, image in thumbnails.images.items():
        try:
            _kind(image)
        except ValueError as error:
            raise ValueError(f"images.{name} is no PNG or JPEG in base64") from error
    return thumbnails


def _kind(text: str) -> str:
    """Return the media type of a file in base64; raises ValueError where it is none that a page shows."""
    content = base64.b64decode(text, validate=True)
    for start, kind in _KINDS.items():
        if content.startswith(start):
            return kind
    raise ValueError("neither PNG nor JPEG")
