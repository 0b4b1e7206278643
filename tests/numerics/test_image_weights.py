import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from repquant.numerics.image_weights import SMALLEST, image_weights


def test_a_loud_image_counts_as_much_as_the_median():
    powers = torch.tensor([1.0, 2.0, 4.0, 200.0, 0.5])
    assert (image_weights(powers) * powers).tolist() == [1.0, 2.0, 2.0, 2.0, 0.5]


@pytest.mark.parametrize("quiet", [0.0, 1e-9])
def test_images_still_count_where_most_have_next_to_nothing(quiet):
    assert image_weights(torch.tensor([quiet, quiet, 5.0])).tolist() == pytest.approx([1.0, 1.0, SMALLEST])


@pytest.mark.parametrize("power", [float("nan"), float("inf")])
def test_powers_that_are_no_numbers(power):
    with pytest.raises(FloatingPointError, match="not finite"):
        image_weights(torch.tensor([1.0, 1.0, power]))


@given(st.lists(st.floats(0, 2.0**60, width=32), min_size=1, max_size=20))
def test_no_image_counts_more_than_another_of_the_same_power(powers):
    weights = image_weights(torch.tensor(powers))
    assert ((weights >= SMALLEST) & (weights <= 1)).all()
    assert (weights[torch.tensor(powers).argsort()].diff() <= 0).all()
