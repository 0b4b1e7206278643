import pytest

from repquant.errors import InputError
from repquant.train.held_back import hold_back, take


def test_held_back_images_are_apart_from_the_rest_and_stratified(noise):
    source = noise(40)
    rest, held = hold_back(source, 10)
    assert len(rest) == 30
    names = [part.name(index) for part in (rest, held) for index in range(len(part))]
    assert sorted(names) == sorted(source.name(index) for index in range(40))
    assert [held.label(index) for index in range(10)].count(0) == 5
    assert rest.classes == held.classes == source.classes


def test_a_subset_shows_the_images_of_its_source(noise):
    source = noise(12)
    _, held = hold_back(source, 4)
    for index in range(4):
        original = int(held.name(index))
        assert held.label(index) == source.label(original)
        assert held.image(index).tobytes() == source.image(original).tobytes() == held.read_bytes(index)


def test_nothing_left_to_train_on_is_refused(noise):
    with pytest.raises(InputError, match="`held_back_images=12` was given, and there are 12 training images"):
        hold_back(noise(12), 12)


def test_some_images_to_train_on_are_stratified_and_grow_with_the_number(noise):
    few, more = take(noise(40), 6), take(noise(40), 12)
    assert [few.label(index) for index in range(6)].count(0) == 3
    assert set(few.indices) < set(more.indices)


def test_images_to_train_on_are_apart_from_the_held_back_ones(noise):
    rest, held = hold_back(noise(40), 10)
    taken = take(rest, 20)
    names = [part.name(index) for part in (taken, held) for index in range(len(part))]
    assert len(names) == len(set(names)) == 30


def test_more_images_to_train_on_than_there_are_are_refused(noise):
    assert len(take(noise(12), 12)) == 12
    with pytest.raises(InputError, match="`training_images=13` was given, and there are 12 images to train on"):
        take(noise(12), 13)
