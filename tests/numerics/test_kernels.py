"""Kernels against the convolutions they stand for, in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from repquant.numerics.kernels import composed, dilated, embedded, regrouped


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_a_kernel_of_two_groups_by_hand():
    kernel = torch.tensor([1.0, 2.0]).view(2, 1, 1, 1)
    assert regrouped(kernel, 2, 1)[:, :, 0, 0].tolist() == [[1, 0], [0, 2]]


@pytest.mark.parametrize(("groups", "coarser"), [(6, 1), (6, 2), (6, 3), (4, 2), (3, 3)])
def test_coarser_groups_compute_the_same(groups, coarser):
    x, kernel = randn(2, 12, 5, 5), randn(24, 12 // groups, 3, 3)
    wide = regrouped(kernel, groups, coarser)
    assert wide.shape == (24, 12 // coarser, 3, 3)
    torch.testing.assert_close(F.conv2d(x, wide, groups=coarser), F.conv2d(x, kernel, groups=groups))


def test_embedding_moves_the_window():
    x, kernel = randn(1, 2, 9, 9), randn(3, 2, 1, 2)
    wide = embedded(kernel, (2, 1), (4, 5))
    torch.testing.assert_close(F.conv2d(x, wide), F.conv2d(x, kernel)[:, :, 2:8, 1:6])


def test_dilation_is_zeros_between_taps():
    x, kernel = randn(1, 2, 9, 9), randn(3, 2, 3, 2)
    torch.testing.assert_close(F.conv2d(x, dilated(kernel, (2, 3))), F.conv2d(x, kernel, dilation=(2, 3)))


@pytest.mark.parametrize("groups", [(1, 1), (2, 2), (4, 2), (2, 1), (1, 4), (8, 4)])
@pytest.mark.parametrize("strides", [((1, 1), (1, 1)), ((2, 1), (1, 3))])
def test_one_behind_another_is_one(groups, strides):
    x = randn(2, 8, 17, 18)
    first, second = randn(8, 8 // groups[0], 3, 1), randn(8, 8 // groups[1], 2, 3)
    expected = F.conv2d(
        F.conv2d(x, first, None, strides[0], groups=groups[0]), second, None, strides[1], 0, 1, groups[1]
    )
    kernel = composed(first, groups[0], strides[0], second, groups[1])
    stride = (strides[0][0] * strides[1][0], strides[0][1] * strides[1][1])
    actual = F.conv2d(x, kernel, None, stride, groups=8 // kernel.shape[1])
    torch.testing.assert_close(actual, expected)
