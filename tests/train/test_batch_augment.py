import sys

import pytest
import torch

from repquant.errors import InputError
from repquant.train.batch_augment import BatchAugmentation

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def batch(count: int = 8, size: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Image i is i + 1 everywhere, of class i: what it is mixed with shows in its pixels."""
    values = torch.arange(1.0, count + 1).view(-1, 1, 1, 1)
    return values.expand(count, 3, size, size).contiguous(), torch.arange(count)


def photos(count: int = 6, size: int = 32) -> torch.Tensor:
    """Normalized by 0.5 and 0.25: values of -2 to 2."""
    torch.manual_seed(1)
    return (torch.nn.functional.interpolate(torch.rand(count, 3, 4, 4), size, mode="bilinear") - 0.5) / 0.25


def augment(images: torch.Tensor, labels: torch.Tensor, seed: int = 0, **settings: object):
    augmentation = BatchAugmentation(**{"num_classes": len(labels)} | settings)
    torch.manual_seed(seed)
    return augmentation(images, labels)


ALL = [
    {"mixup": 0.2},
    {"cutmix": 1.0},
    {"mixup": 0.8, "cutmix": 1.0},
    {"randaugment": "n2m9"},
    {"mixup": 0.2, "randaugment": "n1m15"},
]


@pytest.mark.parametrize("settings", ALL, ids=str)
def test_the_seed_decides_and_the_labels_sum_to_one(settings):
    images, labels = photos(), torch.tensor([0, 1, 2, 3, 4, 4])
    before = images.clone()
    outcomes = [augment(images, labels, seed, **settings) for seed in (0, 0, 1)]
    assert torch.equal(images, before)
    for mixed, soft in outcomes:
        assert mixed.shape == images.shape
        assert mixed.dtype == soft.dtype == torch.float32
        assert mixed.isfinite().all()
        assert soft.shape == (6, 6)
        assert soft.min() >= 0
        torch.testing.assert_close(soft.sum(dim=1), torch.ones(6))
    assert torch.equal(outcomes[0][0], outcomes[1][0])
    assert torch.equal(outcomes[0][1], outcomes[1][1])
    assert not torch.equal(outcomes[0][0], outcomes[2][0])


def test_all_off_changes_nothing():
    images, labels = batch()
    state = torch.get_rng_state()
    same, soft = BatchAugmentation(num_classes=9)(images, labels)
    assert same is images
    assert torch.equal(soft, torch.eye(8, 9))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("seed", range(20))
def test_mixup_mixes_labels_by_the_share_of_the_pixels(seed):
    images, labels = batch()
    mixed, soft = augment(images, labels, seed, mixup=1.0)
    # Pixel value and class follow from each other: the expected value under the soft label is the pixel.
    torch.testing.assert_close(soft @ torch.arange(1.0, 9), mixed[:, 0, 0, 0])
    assert torch.equal(mixed, mixed[:, :1, :1, :1].expand_as(mixed))
    own = soft.diagonal()
    shares = own[own < 1]
    torch.testing.assert_close(shares, shares[:1].expand_as(shares))  # one share for the batch
    assert ((soft > 0).sum(dim=1) <= 2).all()


def test_mixups_share_is_drawn_from_the_beta_distribution():
    images, labels = batch(8, 1)
    shares = {0.2: [], 8.0: []}
    for alpha, found in shares.items():
        for seed in range(200):
            soft = augment(images, labels, seed, mixup=alpha)[1].diagonal()
            found += soft[soft < 1][:1].tolist()
        spread = torch.tensor(found).var()
        assert spread == pytest.approx(0.25 / (2 * alpha + 1), rel=0.25)  # variance of Beta(alpha, alpha)


@pytest.mark.parametrize("count", [1, 2, 8])
@pytest.mark.parametrize("seed", range(15))
def test_cutmix_mixes_labels_by_the_area_of_the_box(count, seed):
    images, labels = batch(count)
    mixed, soft = augment(images, labels, seed, cutmix=1.0)
    torch.testing.assert_close(soft @ torch.arange(1.0, count + 1), mixed[:, 0].mean(dim=(1, 2)))
    for image, original in zip(mixed[:, 0], images[:, 0], strict=True):
        rows, columns = (image != original).nonzero(as_tuple=True)
        if len(rows) > 0:
            box = image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            assert (box == box[0, 0]).all()
            assert box.numel() == len(rows)


def test_with_both_each_batch_gets_one_of_them_with_equal_chance():
    images, labels = batch(4, 8)
    whole = 0
    for seed in range(300):
        mixed, _ = augment(images, labels, seed, mixup=1.0, cutmix=1.0)
        whole += bool((mixed == mixed.round()).all())  # a box keeps the values, mixup does not
    assert 110 < whole < 190


def test_randaugment_draws_operations_for_each_image_anew():
    images = photos(1).expand(64, 3, 32, 32).contiguous()
    settings = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "randaugment": "n1m9"}
    augmented, soft = augment(images, torch.zeros(64, dtype=torch.int64), **settings)
    different = {tuple(image.flatten()[::97].tolist()) for image in augmented}
    assert len(different) >= 12  # 15 operations, some with a random sign
    assert soft.shape == (64, 64)


def test_randaugment_sees_images_of_0_to_1():
    images = photos()
    settings = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    for seed in range(10):
        augmented, _ = augment(images, torch.arange(6), seed, randaugment="n3m20", **settings)
        assert augmented.min() >= -2 - 1e-4
        assert augmented.max() <= 2 + 1e-4


@pytest.mark.parametrize("magnitude", [6, 10, 27])
def test_randaugments_magnitude_is_out_of_30(magnitude):
    images = torch.full((150, 3, 9, 9), 0.4)
    augmented, _ = augment(images, torch.zeros(150, dtype=torch.int64), randaugment=f"n1m{magnitude}", **PLAIN)
    found = augmented[:, 0, 4, 4]
    brightness = 0.1 + 1.8 * magnitude / 30
    for expected in (0.4 * brightness, 0.6):  # brightness, invert
        assert (found - expected).abs().min() < 1e-5


@pytest.mark.parametrize("spec", ["9", "n2", "m9", "n0m9", "n2m0", "n2m30", "n2m9 ", "rand-m9-n2", "n-1m9"])
def test_a_spec_that_is_not_understood(spec):
    with pytest.raises(InputError, match=r"RandAugment '.*' is not understood; give n<operations>m<magnitude>.*n2m9"):
        BatchAugmentation(randaugment=spec, num_classes=2)


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_a_negative_alpha(name):
    with pytest.raises(InputError, match=rf"{name} -0.1 is negative"):
        BatchAugmentation(**{name: -0.1}, num_classes=2)


@pytest.mark.parametrize("settings", ALL, ids=str)
def test_without_kornia_the_extra_is_named(monkeypatch, settings):
    monkeypatch.setitem(sys.modules, "kornia.augmentation", None)
    with pytest.raises(InputError, match=r"pip install 'repquant\[train\]'"):
        BatchAugmentation(**settings, num_classes=2)
    BatchAugmentation(num_classes=2)
