import pytest

from repquant.errors import InputError
from repquant.train.augment import CROPS
from repquant.train.recipe import AUGMENTATIONS, Recipe
from repquant.train.schedule import parse_sizes


def test_defaults_are_the_official_recipe():
    recipe = Recipe(arch="RepVGG-A0")
    assert (recipe.epochs, recipe.batch_size, recipe.learning_rate, recipe.momentum) == (120, 256, 0.1, 0.9)
    assert (recipe.weight_decay, recipe.label_smoothing, recipe.image_size) == (1e-4, 0.1, 224)


def test_every_augmentation_has_its_function():
    assert tuple(CROPS) == AUGMENTATIONS


def test_the_learning_rate_is_scaled_for_the_batch_on_request():
    assert Recipe(arch="RepVGG-A0", learning_rate=0.1, batch_size=1024).peak_learning_rate == 0.1
    scaled = Recipe(arch="RepVGG-A0", learning_rate=0.1, batch_size=1024, reference_batch=256)
    assert scaled.peak_learning_rate == pytest.approx(0.4)


def test_training_images_grow_by_the_schedule():
    recipe = Recipe(arch="RepVGG-A0", image_size=160, size_schedule="0:96,10:128,24:160", epochs=30)
    assert [recipe.training_size(epoch) for epoch in (0, 9, 10, 23, 24, 29)] == [96, 96, 128, 128, 160, 160]
    assert recipe.training_sizes == (96, 128, 160)
    assert Recipe(arch="RepVGG-A0", image_size=160).training_size(7) == 160


@pytest.mark.parametrize(
    "text", ["", "1:96", "0:96,10", "0:a", "0:96,5:128,5:160", "0:96,9:128,5:160", "0:0", "0:96,", "0:9999"]
)
def test_what_is_no_schedule_is_refused(text):
    with pytest.raises(InputError, match="`size_schedule"):
        parse_sizes(text)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"augmentation": "mixup"}, "`augmentation='mixup'` was given; allowed is one of random-resized-crop, pad"),
        ({"crop_area": 0.0}, r"`crop_area=0\.0` was given; allowed is more than 0 and at most 1"),
        (
            {"crop_area": 0.5, "augmentation": "center-crop"},
            "`crop_area` is for .* and it is center-crop",
        ),
        ({"crop_area": 1.1}, r"`crop_area=1\.1`"),
        ({"precision": "int8"}, "`precision='int8'` was given; allowed is one of float32, bfloat16, float16"),
        ({"batch_size": 1}, "`batch_size=1` .* from 2 to"),
        ({"epochs": 0}, "`epochs=0` .* from 1 to"),
        ({"learning_rate": 0.0}, r"`learning_rate=0\.0` .* more than 0"),
        ({"learning_rate": float("nan")}, "`learning_rate=nan`"),
        ({"epochs": 5, "warmup_epochs": 5}, "`warmup_epochs=5` .* from 0 to less than 5"),
        ({"momentum": 1.0}, r"`momentum=1\.0`"),
        ({"weight_decay": -1e-4}, r"`weight_decay=-0\.0001`"),
        ({"label_smoothing": 1.0}, r"`label_smoothing=1\.0`"),
        ({"seed": -1}, "`seed=-1`"),
        ({"optimizer": "lion"}, "`optimizer='lion'` was given; allowed is one of sgd, adamw"),
        ({"accumulation_steps": 0}, "`accumulation_steps=0` .* from 1 to"),
        ({"ema_decay": 1.0}, r"`ema_decay=1\.0` .* from 0 to less than 1"),
        ({"clip_norm": -1.0}, r"`clip_norm=-1\.0` .* from 0 to"),
        ({"mixup": float("inf")}, "`mixup=inf`"),
        ({"mixup": 1e-320}, r"`mixup=.* allowed is 0, or from 0\.001 to"),
        ({"randaugment": "foo"}, "RandAugment 'foo' is not understood"),
        ({"held_back_images": -1}, "`held_back_images=-1`"),
        ({"training_images": -1}, "`training_images=-1`"),
        ({"freeze_stages": -1}, "`freeze_stages=-1`"),
        ({"size_schedule": "0:96,10:128", "epochs": 10}, "`size_schedule='0:96,10:128'` .* epochs from 0 to 9"),
        ({"size_schedule": "96"}, "`size_schedule='96'` was given; write it as 0:96,10:128"),
    ],
)
def test_what_is_out_of_range_is_refused(setting, message):
    with pytest.raises(InputError, match=message):
        Recipe(arch="RepVGG-A0", **setting)
