import pytest
import torch
from torch import nn

from repquant.numerics.patches import Geometry, draw_positions, outputs_at, patches_at


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [
        ((3, 3), (1, 1), (1, 1), (1, 1)),
        ((3, 3), (2, 2), (1, 1), (1, 1)),
        ((1, 1), (1, 1), (0, 0), (1, 1)),
        ((3, 2), (2, 1), (1, 0), (1, 2)),
    ],
)
def test_patches_times_kernel_are_the_outputs(kernel, stride, padding, dilation):
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, kernel, stride, padding, dilation, dtype=torch.float64)
    x = torch.randn(2, 3, 7, 9, dtype=torch.float64)
    geometry = Geometry(kernel=kernel, stride=stride, padding=padding, dilation=dilation)
    y = conv(x)
    assert geometry.output_size((7, 9)) == tuple(y.shape[2:])
    positions = draw_positions(2, y.shape[2] * y.shape[3], 20)
    product = patches_at(x, geometry, positions) @ conv.weight.flatten(1).T + conv.bias
    assert torch.allclose(product, outputs_at(y.flatten(2), positions), atol=1e-12)


def test_positions_are_spread_evenly_and_repeat_themselves():
    positions = draw_positions(4, 100, 44)
    assert positions.shape == (4, 11)
    assert all(len(set(image.tolist())) == 11 for image in positions)
    assert torch.equal(positions, draw_positions(4, 100, 44))
    assert draw_positions(4, 5, 44).shape == (4, 5)
    assert draw_positions(4, 5, 1).shape == (4, 1)
