import pytest
import torch

from repquant.numerics.outliers import diagonal_dominance, range_over_sigma


def test_range_over_the_sigma_of_the_others():
    """Others of the first channel: 1, -1, 1, -1 with sigma 1. The second one's largest weight is negative."""
    weight = torch.tensor([[8.0, 1, -1, 1, -1], [2, -2, 2, -2, -6]])
    assert range_over_sigma(weight).tolist() == [8, 3]
    assert range_over_sigma(weight.reshape(2, 5, 1, 1)).tolist() == [8, 3]


def test_one_largest_weight_of_two_equal_ones_is_left_out():
    assert range_over_sigma(torch.tensor([[3.0, 3, 1, -1]])).item() == pytest.approx(3 / (8 / 3) ** 0.5)


def test_channels_whose_other_weights_do_not_vary_are_left_out():
    """0.1 has no exact float32 form: a sigma from rounding must not count."""
    weight = torch.tensor([[0.1, 0.1, 0.1, 0.1], [0, 0, 0, 0], [5, 0.1, 0.1, 0.1], [2, 1, -1, 0]])
    assert range_over_sigma(weight).tolist() == [pytest.approx(2 / (2 / 3) ** 0.5)]


@pytest.mark.parametrize("shape", [(3, 1), (3, 2)])
def test_channels_of_one_or_two_weights_have_no_spread(shape):
    assert len(range_over_sigma(torch.randn(shape))) == 0


def test_diagonal():
    """Three channels: diagonal 4 against 2, -6 against 2, and 1 against 2."""
    weight, mask = torch.zeros(3, 3, 3, 3), torch.zeros(3, 3, 3, 3, dtype=torch.bool)
    for channel, value in enumerate((4.0, -6.0, 1.0)):
        weight[channel, channel, 1, 1] = value
        weight[channel, 0, 0, 2] = -2.0
        mask[channel, channel, 1, 1] = True
    share, ratio = diagonal_dominance(weight, mask)
    assert share == pytest.approx(2 / 3)
    assert ratio == 2


def test_diagonal_of_weights_that_are_equal_or_zero():
    mask = torch.zeros(2, 2, 3, 3, dtype=torch.bool)
    mask[[0, 1], [0, 1], 1, 1] = True
    assert diagonal_dominance(torch.full((2, 2, 3, 3), -0.1), mask) == (0, 1)
    assert diagonal_dominance(torch.zeros(2, 2, 3, 3), mask) == (0, None)
    assert diagonal_dominance(mask.float(), mask) == (1, None)
