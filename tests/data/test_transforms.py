import numpy as np
import pytest
import torch
from PIL import Image

from repquant.data.transforms import EvalTransform, _covering_size
from repquant.errors import InputError


def gray(rows: list[list[int]]) -> Image.Image:
    return Image.fromarray(np.array(rows, dtype=np.uint8)).convert("RGB")


def coordinates(width: int, height: int) -> Image.Image:
    """Red is the column, green the row."""
    row, column = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([column, row, 0 * row], axis=-1).astype(np.uint8))


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (500, 375, (341, 256)),  # 256 * 500 / 375 = 341.33
        (375, 500, (256, 341)),
        (333, 500, (256, 384)),  # 384.38
        (320, 320, (256, 256)),
        (1, 1, (256, 256)),
        (4288, 2848, (385, 256)),  # 385.44
    ],
)
def test_shorter_side_goes_to_the_target_and_the_longer_is_rounded_down(width, height, expected):
    assert _covering_size(height, width, (256, 256)) == expected[::-1]


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (400, 100, (800, 200)),  # the height needs more enlarging
        (100, 100, (400, 400)),  # the width does
        (200, 100, (400, 200)),  # already of the target's shape
    ],
)
def test_for_a_pair_the_image_covers_the_target(width, height, expected):
    assert _covering_size(height, width, (200, 400)) == expected[::-1]


def test_resize_is_bilinear_with_antialiasing():
    # Halving: the triangle filter is 4 pixels wide and centered at 1.0 and 3.0, so the first output pixel has the
    # weights 3/7, 3/7, 1/7: (3 * 0 + 3 * 70 + 140) / 7 = 50, and the second (70 + 3 * 140 + 3 * 210) / 7 = 160.
    # Without antialiasing they would be 35 and 175.
    pixels = EvalTransform(image_size=2, crop_ratio=1.0)(gray([[0, 70, 140, 210]] * 4))
    assert pixels.tolist() == [[[50, 160]] * 2] * 3


@pytest.mark.parametrize(
    ("width", "left"),
    [(8, 2), (9, 2), (10, 3), (11, 4)],  # (width - 4) / 2 = 2, 2.5, 3, 3.5, rounded half to even
)
def test_crop_is_centered(width, left):
    pixels = EvalTransform(image_size=4, crop_ratio=4 / 6)(coordinates(width, height=6))  # 6 -> 6: no resize
    assert pixels[0, 0].tolist() == [left, left + 1, left + 2, left + 3]
    assert pixels[1, :, 0].tolist() == [1, 2, 3, 4]


def test_default_crops_224_out_of_256():
    pixels = EvalTransform()(coordinates(256, 256))
    assert pixels.shape == (3, 224, 224)
    assert pixels[:2, 0, 0].tolist() == [16, 16]
    assert pixels[:2, -1, -1].tolist() == [239, 239]


def test_a_pair_is_height_and_width():
    pixels = EvalTransform(image_size=(2, 4), crop_ratio=1.0)(coordinates(4, 2))
    assert pixels.tolist() == [[[0, 1, 2, 3]] * 2, [[0] * 4, [1] * 4], [[0] * 4] * 2]


def test_output_is_contiguous_uint8_of_its_own():
    pixels = EvalTransform(image_size=3, crop_ratio=1.0)(coordinates(3, 3))
    assert pixels.dtype == torch.uint8
    assert pixels.is_contiguous()
    pixels.zero_()


def test_one_pixel_fills_the_output():
    pixels = EvalTransform(image_size=32)(Image.new("RGB", (1, 1), (10, 20, 30)))
    assert torch.equal(pixels, torch.tensor([10, 20, 30], dtype=torch.uint8).view(3, 1, 1).expand(3, 32, 32))


def test_normalize_by_hand():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3).expand(1, 3, 1, 3)
    transform = EvalTransform(image_size=3, mean=(0.5, 0.0, 0.2), std=(0.25, 1.0, 0.5))
    expected = torch.tensor([[-2.0, -1.2, 2.0], [0.0, 0.2, 1.0], [-0.4, 0.0, 1.6]]).view(1, 3, 1, 3)
    normalized = transform.normalize(images)
    assert normalized.dtype == torch.float32
    torch.testing.assert_close(normalized, expected, rtol=0, atol=1e-7)


def test_normalize_rounds_as_to_tensor_and_normalize_do():
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16).contiguous()
    before = images.clone()
    mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
    expected = (images.float() / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    assert torch.equal(EvalTransform().normalize(images), expected)
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 0}, r"image size 0 is not positive"),
        ({"image_size": (32, -1)}, r"image size \(32, -1\) is not positive"),
        ({"crop_ratio": 0.0}, r"crop ratio 0.0 is outside \(0, 1\]"),
        ({"crop_ratio": 1.01}, r"crop ratio 1.01 is outside"),
        ({"crop_ratio": float("nan")}, r"crop ratio nan is outside"),
        ({"std": (0.2, 0.0, 0.2)}, r"std \(0.2, 0.0, 0.2\) need .* above 0"),
        ({"mean": (0.5,)}, r"mean \(0.5,\) .* three values each"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(InputError, match=message):
        EvalTransform(**arguments)


def test_an_extremely_elongated_image_is_refused_before_it_fills_the_memory():
    with pytest.raises(InputError, match=r"1 x 1000000 pixels would be resized to 256 x 256000000"):
        EvalTransform()(Image.new("RGB", (1, 1_000_000)))
