import pytest
import torch
from torch import nn

import repquant as rq
from repquant.graph.batches import WithoutImages
from repquant.methods.outlying_images import ImageMagnitudes, describe, outlying_images


def magnitudes(*tensors):
    found = {}
    for number, parts in enumerate(tensors):
        found[str(number)] = ImageMagnitudes()
        for part in parts:
            found[str(number)].update(part)
    return found


def test_the_largest_magnitude_of_an_image_however_its_rows_lie():
    x = torch.zeros(4, 2, 3)
    x[0, 1, 2], x[3, 0, 0] = -5, 2
    each = ImageMagnitudes()
    each.update(x[:2])
    each.update(x[2:])
    assert each.of_images([2, 2]).tolist() == [5, 0, 0, 2]
    assert each.of_images([1, 1]) is None  # two windows an image, or places in front of the images
    flat = ImageMagnitudes()
    assert flat.update(torch.tensor([1.0, -3.0])) == (-3, 1)
    assert flat.of_images([2]).tolist() == [1, 3]
    scalar = ImageMagnitudes()
    assert scalar.update(torch.tensor(2.0)) == (2, 2)
    assert scalar.of_images([2]) is None


def test_an_image_counts_that_is_out_in_half_of_the_tensors():
    usual = torch.ones(40, 3)
    far, far_once = usual.clone(), usual.clone()
    far[7], far_once[[7, 9]] = 100, 100
    assert outlying_images(magnitudes([usual], [far], [far_once]), [40]) == (7,)
    assert outlying_images(magnitudes([usual], [usual], [far_once]), [40]) == ()
    near = usual.clone()
    near[7] = 3.9
    assert outlying_images(magnitudes([near]), [40]) == ()


def test_many_such_images_are_what_the_network_meets():
    x = torch.ones(40, 3)
    x[:2] = 100
    assert outlying_images(magnitudes([x]), [40]) == (0, 1)
    x[2] = 100
    assert outlying_images(magnitudes([x]), [40]) == ()


def test_few_images_and_silent_tensors_tell_nothing():
    x = torch.ones(15, 3)
    x[3] = 100
    assert outlying_images(magnitudes([x]), [15]) == ()
    silent = torch.zeros(40, 3)
    silent[3] = 1
    assert outlying_images(magnitudes([silent]), [40]) == ()
    assert outlying_images({}, [40]) == ()


@pytest.mark.parametrize("kind", ["tensor", "pair", "mapping"])
def test_images_are_left_out_with_their_labels(kind):
    x, labels = torch.arange(10.0).reshape(10, 1), torch.arange(10)
    parts = [(x[:4], labels[:4]), (x[4:5], labels[4:5]), (x[5:], labels[5:])]
    as_kind = {"tensor": lambda x, _: x, "pair": lambda *both: both, "mapping": lambda x, y: {"x": x, "y": y}}[kind]
    batches = WithoutImages([as_kind(*part) for part in parts], frozenset({1, 4, 9}))
    for _ in range(2):
        kept = list(batches)
        images = [{"tensor": lambda b: b, "pair": lambda b: b[0], "mapping": lambda b: b["x"]}[kind](b) for b in kept]
        assert [part.flatten().tolist() for part in images] == [[0, 2, 3], [5, 6, 7, 8]]
        if kind != "tensor":
            seconds = [{"pair": lambda b: b[1], "mapping": lambda b: b["y"]}[kind](b) for b in kept]
            assert [part.tolist() for part in seconds] == [[0, 2, 3], [5, 6, 7, 8]]


def test_the_sentence_names_some():
    assert describe([3, 5]).startswith("2 of the calibration images set the network off")
    assert describe([3, 5]).endswith("were left out: 3, 5")
    assert describe(list(range(20))).endswith("6, 7 and 12 more")


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.LazyLinear(5)).eval()


def images(*, far=()):
    x = torch.randn(48, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    for place in far:
        x[place] *= 1000
    return x


def test_a_network_is_quantized_as_if_outliers_had_not_been_given(network):
    network(images()[:1])
    given, kept = images(far=(3, 20)), torch.cat([images()[:3], images()[4:20], images()[21:]])
    found = rq.quantize(network, list(given.split(16)))
    clean = rq.quantize(network, [kept[:15], kept[15:30], kept[30:]])
    assert found.outliers == (3, 20)
    assert clean.outliers == ()
    assert torch.equal(found(images()), clean(images()))


def test_shuffled_images_have_no_places_so_none_is_left_out(network):
    network(images()[:1])
    order = torch.Generator().manual_seed(0)

    class Shuffled:
        def __iter__(self):
            given = images(far=(3,))
            return iter(given[torch.randperm(48, generator=order)].split(16))

    assert rq.quantize(network, Shuffled()).outliers == ()
    assert rq.search(network, Shuffled(), held_back=[images()], max_drop=100).outliers == ()


def test_images_of_nested_batches_are_left_out():
    x, y = torch.arange(6.0).reshape(6, 1), torch.arange(6)
    (kept,) = WithoutImages([((x, -x), y)], frozenset({4}))
    assert kept[0][0].flatten().tolist() == [0, 1, 2, 3, 5]
    assert kept[0][1].flatten().tolist() == [0, -1, -2, -3, -5]
    assert kept[1].tolist() == [0, 1, 2, 3, 5]


def test_a_gate_without_dimensions_is_quantized():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            y = self.layer(x)
            return y.relu() * y.abs().mean()

    assert rq.quantize(Gated().eval(), [images()]).outliers == ()


def test_search_leaves_them_out_too_and_says_so(network):
    network(images()[:1])
    found = rq.search(network, list(images(far=(3,)).split(16)), held_back=[images()], max_drop=100)
    assert found.outliers == (3,)
    assert any("1 of the calibration images" in note for note in found.notes)
