import pytest
import torch

from repquant.methods.channel_statistics import ChannelMoments, ChannelRanges


@pytest.mark.parametrize("dim", [1, -1])
def test_moments_of_a_channel_over_batches(dim):
    torch.manual_seed(0)
    x = torch.randn(6, 3, 4, 3) + 2
    moments = ChannelMoments(dim)
    for part in x.split([4, 2]):
        moments.update(part)
    values = x.movedim(dim, 0).flatten(1).double()
    torch.testing.assert_close(moments.variance, values.var(1, correction=0), rtol=1e-5, atol=0)
    torch.testing.assert_close(moments.active, (values > 0).double().mean(1))


def test_ranges_are_averages_over_images():
    ranges = ChannelRanges((1, 2, 1))
    ranges.update(torch.tensor([[[1.0, -3.0], [2.0, 0.5]]]), 1)
    ranges.update(torch.tensor([[[5.0, -1.0], [4.0, 0.0]], [[-2.0, -1.0], [0.0, 9.0]]]), 2)
    assert ranges.high.tolist() == [[[2.0], [5.0]]]  # (1 + 5 + 0) / 3, (2 + 4 + 9) / 3
    assert ranges.low.tolist() == [[[2.0], [0.0]]]  # (3 + 1 + 2) / 3


def test_images_may_lie_folded_in_dimension_0():
    ranges = ChannelRanges((1, 1))
    ranges.update(torch.tensor([[1.0], [3.0], [7.0], [5.0]]), 2)  # two tokens of two images
    assert ranges.high.tolist() == [[5.0]]  # (3 + 7) / 2
