import pytest

from repquant.errors import InputError
from repquant.methods.ranking import rank_layers
from repquant.methods.rounded import Rounded
from repquant.methods.sensitivity import measure_sensitivity
from repquant.targets.target import resolve_target


@pytest.fixture
def rounded(mixed, images, plan):
    return Rounded(mixed, plan(mixed, [images], resolve_target("tensorrt", weight_bits=3)))


def test_the_order_is_that_of_the_whole_analysis(mixed, rounded, images):
    seen = []
    ranked = rank_layers(mixed, rounded, images.split(3), seen.append)
    places = measure_sensitivity(mixed, rounded, [images]).layers
    harm = {place.name: place.only.harm for place in places if place.has_weights}
    assert harm.keys() == set(ranked)
    assert [harm[name] for name in ranked] == pytest.approx(sorted(harm.values(), reverse=True), rel=1e-3)
    assert seen == [3, 3, 2]


def test_no_images(mixed, rounded):
    with pytest.raises(InputError, match="no images to rank layers with; give at least 1"):
        rank_layers(mixed, rounded, [])
