import numpy as np
import pytest
from PIL import Image

from repquant.data.decoding import UnreadableImageError, decode
from repquant.errors import InputError


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_usual_mode_becomes_rgb(save_image, mode):
    image = decode(save_image("image.png", mode))
    assert (image.mode, image.size) == ("RGB", (8, 6))


def test_grayscale_jpeg_has_equal_channels(save_image):
    pixels = np.asarray(decode(save_image("gray.jpg", "L")))
    assert pixels.shape == (6, 8, 3)
    assert np.ptp(pixels, axis=2).max() == 0
    assert np.ptp(pixels) > 0


def test_cmyk_jpeg_is_converted(tmp_path):
    Image.new("CMYK", (4, 4), (255, 0, 0, 0)).save(tmp_path / "cyan.jpg", quality=100)
    red, green, blue = decode(tmp_path / "cyan.jpg").getpixel((0, 0))
    assert red < 5
    assert min(green, blue) > 250


def test_alpha_is_dropped_without_compositing(tmp_path):
    Image.new("RGBA", (1, 1), (200, 100, 50, 0)).save(tmp_path / "clear.png")
    assert decode(tmp_path / "clear.png").getpixel((0, 0)) == (200, 100, 50)


def test_palette_with_transparency_is_looked_up_without_a_warning(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([200, 100, 50, 1, 2, 3])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "palette.png", transparency=b"\x00\x80")
    decoded = decode(tmp_path / "palette.png")
    assert [decoded.getpixel((x, 0)) for x in (0, 1)] == [(200, 100, 50), (1, 2, 3)]


def test_exif_orientation_is_not_applied(save_image):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    assert decode(save_image("turned.jpg", size=(8, 6), exif=exif)).size == (8, 6)


def test_one_pixel(save_image):
    assert decode(save_image("dot.png", size=(1, 1))).size == (1, 1)


def check_unreadable(file, reason: str) -> None:
    with pytest.raises(UnreadableImageError, match=reason) as caught:
        decode(file)
    assert isinstance(caught.value, InputError)
    message = str(caught.value)
    assert str(file) in message
    assert "--skip-unreadable" in message


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
    check_unreadable(file, "not an image in a format that Pillow knows")


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
