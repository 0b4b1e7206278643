import pytest

from repquant.errors import InputError
from repquant.train.augment import CROPS
from repquant.train.recipe import AUGMENTATIONS, Recipe


def test_defaults_are_the_official_recipe():
    recipe = Recipe(arch="RepVGG-A0")
    assert (recipe.epochs, recipe.batch_size, recipe.learning_rate, recipe.momentum) == (120, 256, 0.1, 0.9)
    assert (recipe.weight_decay, recipe.label_smoothing, recipe.image_size) == (1e-4, 0.1, 224)


def test_every_augmentation_has_its_function():
    assert tuple(CROPS) == AUGMENTATIONS


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"augmentation": "mixup"}, "--augmentation mixup was given; allowed is one of random-resized-crop, padded-c"),
        ({"precision": "int8"}, "--precision int8 was given; allowed is one of float32, bfloat16"),
        ({"batch_size": 1}, "--batch-size 1 .* at least 2"),
        ({"epochs": 0}, "--epochs 0 .* at least 1"),
        ({"learning_rate": 0.0}, r"--learning-rate 0\.0 .* a positive number"),
        ({"learning_rate": float("nan")}, "--learning-rate nan"),
        ({"epochs": 5, "warmup_epochs": 5}, "--warmup-epochs 5 .* from 0 to less than 5"),
        ({"momentum": 1.0}, r"--momentum 1\.0"),
        ({"weight_decay": -1e-4}, r"--weight-decay -0\.0001"),
        ({"label_smoothing": 1.0}, r"--label-smoothing 1\.0"),
        ({"seed": -1}, "--seed -1"),
    ],
)
def test_what_is_out_of_range_is_refused(setting, message):
    with pytest.raises(InputError, match=message):
        Recipe(arch="RepVGG-A0", **setting)
