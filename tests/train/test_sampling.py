import pytest
import torch

from repquant.data.datasets import open_split
from repquant.data.loading import Batch
from repquant.errors import InputError
from repquant.train.distributed import Ranks
from repquant.train.sampling import AugmentedSource, TrainingSet, validation_loader

CPU = torch.device("cpu")


def epoch_of(training: TrainingSet, epoch: int) -> list[Batch]:
    return list(training.batches(epoch * training.steps, (epoch + 1) * training.steps, CPU))


def images(training: TrainingSet, epoch: int) -> torch.Tensor:
    return torch.cat([batch.images for batch in epoch_of(training, epoch)])


def test_an_epoch_has_full_batches_of_different_images(noise, recipe):
    training = TrainingSet(noise(35), recipe(batch_size=8))
    order = training.order(0)
    assert training.steps == 4
    assert len(order) == 32
    assert len(set(order)) == 32
    batches = epoch_of(training, 0)
    assert [len(batch.images) for batch in batches] == [8] * 4
    assert torch.cat([batch.labels for batch in batches]).tolist() == [index % 2 for index in order]


def test_epochs_differ_in_order_and_augmentation(noise, recipe):
    training = TrainingSet(noise(32), recipe())
    first, second = training.order(0), training.order(1)
    assert first != second
    assert sorted(first) == sorted(second) == list(range(32))
    position = [first.index(index) for index in second]
    same = (images(training, 0)[position] == images(training, 1)).flatten(1).all(dim=1)
    assert same.sum() < 16


def test_the_smallest_area_is_that_of_the_recipe(noise, recipe):
    def variants(area: float) -> int:
        settings = recipe(augmentation="random-resized-crop", crop_area=area)
        crops = (AugmentedSource(noise(1), settings, epoch).image(0) for epoch in range(20))
        return len({crop.tobytes() for crop in crops})

    assert variants(1.0) == 2  # the whole image and its mirror image
    assert variants(0.5) > 10


def test_all_of_it_depends_on_the_seed_and_on_nothing_else(noise, recipe):
    training, again, other = (TrainingSet(noise(32), recipe(seed=seed)) for seed in (1, 1, 2))
    torch.manual_seed(5)
    expected = images(training, 3)
    images(again, 0)
    torch.manual_seed(6)
    assert torch.equal(images(again, 3), expected)
    assert training.order(3) != other.order(3)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")  # Python 3.12, torch's default
def test_workers_change_nothing(noise, recipe):
    alone, shared = (TrainingSet(noise(32), recipe(), workers=workers) for workers in (0, 2))
    assert torch.equal(images(alone, 1), images(shared, 1))


def test_a_schedule_changes_the_size_of_training_images_alone(noise, recipe):
    plan = recipe(size_schedule="0:16,1:24", batch_size=16)
    training = TrainingSet(noise(32), plan)
    sizes = [batch.images.shape[-1] for batch in training.batches(0, 6, CPU)]
    assert sizes == [16, 16, 24, 24, 24, 24]
    assert next(iter(validation_loader(noise(4), plan))).images.shape[-1] == 16


def test_batches_begin_at_any_step_and_come_in_parts(noise, recipe):
    whole = list(TrainingSet(noise(32), recipe()).batches(0, 8, CPU))
    parts = list(TrainingSet(noise(32), recipe(accumulation_steps=2)).batches(3, 6, CPU))
    assert len(parts) == 6
    for number, first, second in zip((3, 4, 5), parts[::2], parts[1::2], strict=True):
        assert torch.equal(torch.cat([first.images, second.images]), whole[number].images)
        assert torch.equal(torch.cat([first.labels, second.labels]), whole[number].labels)


def test_a_batch_without_a_readable_image_is_refused(recipe, tmp_path, noise):
    for index in range(8):
        folder = tmp_path / "train" / ("dark", "bright")[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index}.png").write_bytes(b"nothing")
    training = TrainingSet(open_split(tmp_path, "train"), recipe(batch_size=4), skip_unreadable=True)
    with pytest.raises(InputError, match="none of the 4 images of a batch can be read"):
        list(training.batches(0, 1, CPU))


def test_validation_images_come_in_order_and_unaugmented(noise, recipe):
    batches = list(validation_loader(noise(11), recipe(batch_size=8)))
    assert [len(batch.images) for batch in batches] == [8, 3]
    assert torch.cat([batch.labels for batch in batches]).tolist() == [index % 2 for index in range(11)]
    again = list(validation_loader(noise(11), recipe(batch_size=8, seed=9)))
    assert torch.equal(batches[1].images, again[1].images)


def test_unreadable_images_of_all_epochs_are_listed(recipe, tmp_path, noise):
    for index in range(8):
        folder = tmp_path / "train" / ("dark", "bright")[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        noise(8).image(index).save(folder / f"{index}.png")
    (tmp_path / "train/dark/4.png").write_bytes(b"nothing")
    training = TrainingSet(open_split(tmp_path, "train"), recipe(batch_size=4), skip_unreadable=True)
    assert sum(len(batch.images) for batch in epoch_of(training, 0)) == 7
    assert list(training.skipped) == ["dark/4.png"]


def test_a_batch_larger_than_the_set_is_refused(noise, recipe):
    with pytest.raises(InputError, match="a batch of 8 is larger than the 7 training images; pass `batch_size=7`"):
        TrainingSet(noise(7), recipe(batch_size=8))


@pytest.mark.parametrize(
    ("ranks", "accumulation_steps", "sync_bn"),
    [(1, 8, True), (1, 8, False), (8, 1, False), (4, 2, False), (2, 4, False)],
)
def test_parts_of_one_image_are_refused(noise, recipe, ranks, accumulation_steps, sync_bn):
    plan = recipe(accumulation_steps=accumulation_steps, sync_bn=sync_bn)
    with pytest.raises(InputError, match="batch statistics would be those of one image"):
        TrainingSet(noise(32), plan, ranks=Ranks(world_size=ranks))


@pytest.mark.parametrize("accumulation_steps", [1, 4])
def test_parts_of_one_image_have_synchronized_statistics(noise, recipe, accumulation_steps):
    ranks = Ranks(world_size=8 // accumulation_steps)
    TrainingSet(noise(32), recipe(accumulation_steps=accumulation_steps), ranks=ranks)


def test_the_classes_must_fit_the_network(noise, recipe):
    with pytest.raises(InputError, match=r"training images have 2 classes, the network 10; pass `num_classes=2`"):
        TrainingSet(noise(32), recipe(num_classes=10))
    with pytest.raises(InputError, match=r"validation images have 2 classes, the network 10"):
        validation_loader(noise(32), recipe(num_classes=10))


def test_images_without_labels_are_refused(noise, recipe):
    with pytest.raises(InputError, match="training images have no labels; put them into a folder for each class"):
        TrainingSet(noise(32, classes=None), recipe())
    with pytest.raises(InputError, match="validation images have no labels"):
        validation_loader(noise(32, classes=None), recipe())
