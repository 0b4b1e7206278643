import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from repquant.data.decoding import Crop, UnreadableImageError, cut, decode, read_bytes
from repquant.errors import InputError


def decoded(file: Path, **options: object) -> Image.Image:
    return decode(read_bytes(file), str(file), **options)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_usual_mode_becomes_rgb(save_image, mode):
    image = decoded(save_image("image.png", mode))
    assert (image.mode, image.size) == ("RGB", (8, 6))


def test_grayscale_jpeg_has_equal_channels(save_image):
    pixels = np.asarray(decoded(save_image("gray.jpg", "L")))
    assert pixels.shape == (6, 8, 3)
    assert np.ptp(pixels, axis=2).max() == 0
    assert np.ptp(pixels) > 0


def test_cmyk_jpeg_is_converted(tmp_path):
    Image.new("CMYK", (4, 4), (255, 0, 0, 0)).save(tmp_path / "cyan.jpg", quality=100)
    red, green, blue = decoded(tmp_path / "cyan.jpg").getpixel((0, 0))
    assert red < 5
    assert min(green, blue) > 250


def test_alpha_is_dropped_without_compositing(tmp_path):
    Image.new("RGBA", (1, 1), (200, 100, 50, 0)).save(tmp_path / "clear.png")
    assert decoded(tmp_path / "clear.png").getpixel((0, 0)) == (200, 100, 50)


def test_palette_with_transparency_is_looked_up_without_a_warning(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([200, 100, 50, 1, 2, 3])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "palette.png", transparency=b"\x00\x80")
    image = decoded(tmp_path / "palette.png")
    assert [image.getpixel((x, 0)) for x in (0, 1)] == [(200, 100, 50), (1, 2, 3)]


def test_exif_orientation_is_not_applied(save_image):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    assert decoded(save_image("turned.jpg", size=(8, 6), exif=exif)).size == (8, 6)


def test_one_pixel(save_image):
    assert decoded(save_image("dot.png", size=(1, 1))).size == (1, 1)


def check_unreadable(file, reason: str) -> None:
    with pytest.raises(UnreadableImageError, match=reason) as caught:
        decoded(file)
    assert isinstance(caught.value, InputError)
    message = str(caught.value)
    assert str(file) in message
    assert "skip_unreadable=True" in message


@pytest.mark.parametrize("name", ["cut.jpg", "cut.png", "cut.bmp", "cut.webp", "cut.ppm", "cut.tif"])
def test_truncated_file(save_image, name):
    file = save_image(name, size=(64, 64))
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    check_unreadable(file, "can't read image")


def test_truncated_jpeg_says_so(save_image):
    file = save_image("cut.jpg", size=(64, 64))
    file.write_bytes(file.read_bytes()[:1000])
    check_unreadable(file, "truncated")


@pytest.mark.parametrize("content", [b"", b"<html>404</html>"])
def test_not_an_image(tmp_path, content):
    file = tmp_path / "page.jpg"
    file.write_bytes(content)
    check_unreadable(file, "not an image in a format that is read")


def test_missing_file(tmp_path):
    check_unreadable(tmp_path / "gone.jpg", "no such file")


@pytest.mark.parametrize("pixels_over_limit", [1.5, 3])  # Pillow warns at one time the limit and raises at two
def test_decompression_bomb(save_image, monkeypatch, pixels_over_limit):
    file = save_image("bomb.png", size=(20, 20))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(400 / pixels_over_limit))
    check_unreadable(file, "decompression bomb")


def test_16_bit_grayscale_is_refused_because_conversion_would_clip_it(tmp_path):
    file = tmp_path / "deep.png"
    Image.fromarray(np.array([[0, 300, 65535]], dtype=np.uint16)).save(file)
    check_unreadable(file, "mode I;16 has more than 8 bits a channel")


def photo(file: Path, size: tuple[int, int] = (501, 377), **options: object) -> Path:
    """A smooth image, so that resolutions can be compared: red grows to the right, green downward."""
    rows, columns = np.mgrid[0 : size[1], 0 : size[0]]
    pixels = np.stack([columns * 255 // size[0], rows * 255 // size[1], (columns + rows) % 200], axis=2)
    Image.fromarray(pixels.astype(np.uint8)).save(file, quality=95, **options)
    return file


def boxed(left: float, top: float, width: float, height: float, side: int):
    return lambda *_: Crop(left, top, width, height, side)


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_a_crop_at_full_resolution_is_pillows_crop_and_resize(tmp_path, name):
    file = photo(tmp_path / name)
    expected = decoded(file).crop((13, 20, 13 + 200, 20 + 150)).resize((128, 128), Image.Resampling.BILINEAR)
    assert decoded(file, choose_crop=boxed(13, 20, 200, 150, 128)).tobytes() == expected.tobytes()


def test_the_crop_is_chosen_from_the_size_of_the_whole_image(tmp_path):
    sizes = []

    def choose(width: int, height: int) -> Crop:
        sizes.append((width, height))
        return Crop(0, 0, width, height, 16)

    decoded(photo(tmp_path / "a.jpg"), choose_crop=choose)
    decoded(photo(tmp_path / "a.png"), choose_crop=choose)
    assert sizes == [(501, 377)] * 2


@pytest.mark.parametrize(
    ("box", "side", "reduction"),
    [
        ((0, 0, 501, 377), 189, 1),
        ((0, 0, 501, 377), 188, 2),
        ((100, 30, 401, 256), 128, 2),
        ((100, 30, 401, 256), 64, 4),
        ((3, 5, 257, 301), 32, 8),
        ((3, 5, 257, 301), 3, 8),
        ((250, 0, 20, 377), 16, 1),
    ],
)
def test_jpeg_is_decoded_at_the_lowest_resolution_that_suffices(tmp_path, monkeypatch, box, side, reduction):
    file = photo(tmp_path / "a.jpg")
    expected = cut(decoded(file), Crop(*box, side))
    widths = []
    convert = Image.Image.convert
    monkeypatch.setattr(Image.Image, "convert", lambda self, mode: widths.append(self.width) or convert(self, mode))
    image = decoded(file, choose_crop=boxed(*box, side))
    assert widths == [-(-501 // reduction)]
    assert image.size == (side, side)
    difference = np.abs(np.asarray(image, np.int16) - np.asarray(expected, np.int16))[..., :2]
    assert difference.max() <= (4 if side > 3 else 12)  # a smooth ramp; a shift by one small pixel would be 4 and more
    assert difference.mean() < 1


def test_only_jpeg_is_reduced(tmp_path):
    file = photo(tmp_path / "a.png")
    crop = Crop(0, 0, 501, 377, 20)
    assert decoded(file, choose_crop=lambda *_: crop).tobytes() == cut(decoded(file), crop).tobytes()


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_color_models_are_reduced_too(tmp_path, mode):
    image = Image.open(photo(tmp_path / "a.png")).convert(mode)
    image.save(tmp_path / "b.jpg", quality=95)
    crop = Crop(10, 20, 400, 300, 64)
    reduced = np.asarray(decoded(tmp_path / "b.jpg", choose_crop=lambda *_: crop), np.int16)
    assert np.abs(reduced - np.asarray(cut(decoded(tmp_path / "b.jpg"), crop), np.int16)).mean() < 2


def test_a_truncated_jpeg_is_unreadable_at_any_resolution(tmp_path):
    file = photo(tmp_path / "a.jpg")
    file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(UnreadableImageError, match="truncated"):
        decoded(file, choose_crop=boxed(0, 0, 501, 377, 32))


def test_without_a_crop_the_resolution_is_full(tmp_path):
    assert decoded(photo(tmp_path / "a.jpg")).size == (501, 377)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


def test_no_image_starts_a_program(tmp_path, monkeypatch):
    """Pillow gives EPS to Ghostscript, whatever the file is called."""
    ghostscript, witness = tmp_path / "gs", tmp_path / "was-run"
    ghostscript.write_text(f"#!/bin/sh\ntouch {witness}\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "x.jpg").write_bytes(EPS)
    check_unreadable(tmp_path / "x.jpg", "not an image in a format that is read")
    assert not witness.exists()
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    with Image.open(tmp_path / "x.jpg") as image, suppress(Exception):
        image.load()
    assert witness.exists()  # the trap works on a reader that takes what Pillow takes


@pytest.mark.parametrize("kind", ["pipe", "device", "loop"])
def test_only_regular_files_are_read(tmp_path, kind):
    """The others hang, never end, or lead nowhere."""
    file = tmp_path / "x.png"
    if kind == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to(Path("/dev/zero") if kind == "device" else file)
    check_unreadable(file, "too many levels of symbolic links" if kind == "loop" else "not a regular file")


def test_a_file_beyond_all_images_is_not_read(tmp_path):
    with (tmp_path / "x.png").open("wb") as stream:
        stream.truncate(2**40)  # a hole
    check_unreadable(tmp_path / "x.png", "larger than 1,073,741,824 bytes")
