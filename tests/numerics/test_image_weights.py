import torch
from hypothesis import given
from hypothesis import strategies as st

from repquant.numerics.image_weights import image_weights


def test_a_loud_image_counts_as_much_as_the_median():
    powers = torch.tensor([1.0, 2.0, 4.0, 400.0, 0.5])
    assert (image_weights(powers) * powers).tolist() == [1.0, 2.0, 2.0, 2.0, 0.5]


def test_images_count_alike_where_most_have_nothing():
    assert image_weights(torch.tensor([0.0, 0.0, 5.0])).tolist() == [1.0, 1.0, 1.0]


@given(st.lists(st.floats(0, 2.0**60, width=32), min_size=1, max_size=20))
def test_no_image_counts_more_than_another_of_the_same_power(powers):
    weights = image_weights(torch.tensor(powers))
    assert ((weights >= 0) & (weights <= 1)).all()
    assert (weights[torch.tensor(powers).argsort()].diff() <= 0).all()
