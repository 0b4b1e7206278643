import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from repquant.data.decoding import cut
from repquant.data.transforms import EvalTransform
from repquant.train.augment import CROPS, Load, center_crop, padded_crop, random_flip, random_resized_crop


def gradient(width: int, height: int) -> Image.Image:
    """Red grows to the right, green downward; blue is 255."""
    rows, columns = np.mgrid[0:height, 0:width]
    red, green = columns * 255 // max(1, width - 1), rows * 255 // max(1, height - 1)
    return Image.fromarray(np.stack([red, green, np.full_like(red, 255)], axis=2).astype(np.uint8))


def loaded(image: Image.Image) -> Load:
    return lambda choose_crop: cut(image, choose_crop(*image.size))


@pytest.mark.parametrize("crop", CROPS.values())
@given(
    size=st.sampled_from([1, 7, 16]),
    width=st.integers(1, 60),
    height=st.integers(1, 60),
    seed=st.integers(0, 2**32),
)
def test_any_image_becomes_a_square_that_the_seed_decides(crop, size, width, height, seed):
    image = gradient(width, height)
    first, second = (crop(loaded(image), size, np.random.default_rng(seed)) for _ in range(2))
    assert first.size == (size, size)
    assert first.mode == "RGB"
    assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize("crop", CROPS.values())
def test_an_elongated_image_costs_no_memory(crop):
    assert crop(loaded(Image.new("RGB", (100_000, 1))), 224, np.random.default_rng(0)).size == (224, 224)


def test_resized_crops_cover_8_to_100_percent_at_every_place():
    areas, aspect_ratios, lefts, bottoms = [], [], [], []
    for seed in range(400):
        pixels = np.asarray(random_resized_crop(loaded(gradient(256, 256)), 32, np.random.default_rng(seed))).astype(
            float
        )
        left, right = pixels[:, 0, 0].mean() / 255, pixels[:, -1, 0].mean() / 255
        top, bottom = pixels[0, :, 1].mean() / 255, pixels[-1, :, 1].mean() / 255
        areas.append((right - left) * (bottom - top))
        aspect_ratios.append((right - left) / (bottom - top))
        lefts.append(left)
        bottoms.append(bottom)
    assert 0.06 < min(areas) < 0.12  # the outermost pixels' centers are a little inside the box
    assert 0.85 < max(areas) <= 1
    assert 0.7 < min(aspect_ratios) < 0.8
    assert 1.25 < max(aspect_ratios) < 1.4
    assert min(lefts) < 0.03
    assert max(bottoms) > 0.97


def test_the_smallest_area_of_a_crop_is_chosen():
    areas = []
    for seed in range(200):
        crop = random_resized_crop(loaded(gradient(256, 256)), 32, np.random.default_rng(seed), least_area=0.5)
        pixels = np.asarray(crop).astype(float)
        width = (pixels[:, -1, 0].mean() - pixels[:, 0, 0].mean()) / 255
        areas.append(width * (pixels[-1, :, 1].mean() - pixels[0, :, 1].mean()) / 255)
    assert 0.45 < min(areas) < 0.55


def test_a_padded_crop_shifts_by_at_most_an_eighth_and_pads_black():
    shifts = set()
    for seed in range(300):
        blue = np.asarray(padded_crop(loaded(gradient(40, 30)), 16, np.random.default_rng(seed)))[:, :, 2]
        rows, columns = np.flatnonzero(blue.max(axis=1)), np.flatnonzero(blue.max(axis=0))
        assert set(np.unique(blue)) <= {0, 255}
        assert (blue[np.ix_(rows, columns)] == 255).all()
        shifts.add((rows[0] if rows[0] else rows[-1] - 15, columns[0] if columns[0] else columns[-1] - 15))
    assert shifts == {(row, column) for row in range(-2, 3) for column in range(-2, 3)}


def test_half_of_the_images_are_mirrored():
    image = gradient(4, 4)
    random = np.random.default_rng(0)
    outcomes = [np.asarray(random_flip(image, random)) for _ in range(400)]
    mirrored = sum(np.array_equal(outcome, np.asarray(image)[:, ::-1]) for outcome in outcomes)
    unchanged = sum(np.array_equal(outcome, np.asarray(image)) for outcome in outcomes)
    assert mirrored + unchanged == 400
    assert 160 < mirrored < 240


@pytest.mark.parametrize("share", [1.0, 0.8])
def test_a_center_crop_is_what_evaluation_sees(share):
    image = gradient(90, 60)
    seen = EvalTransform(image_size=24, crop_ratio=share)(image).permute(1, 2, 0).numpy().astype(int)
    cropped = np.asarray(center_crop(loaded(image), 24, np.random.default_rng(1), share)).astype(int)
    assert np.abs(seen - cropped).max() <= 4
    other = np.asarray(center_crop(loaded(image), 24, np.random.default_rng(1), share / 2)).astype(int)
    assert np.abs(seen - other).max() > 20
