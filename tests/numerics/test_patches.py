import pytest
import torch
from torch import nn

from repquant.numerics.patches import Geometry, Positions, outputs_at, patches_at


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
    positions = Positions(2, y.shape[2] * y.shape[3], 20).draw(2)
    product = patches_at(x, geometry, positions) @ conv.weight.flatten(1).T + conv.bias
    assert torch.allclose(product, outputs_at(y.flatten(2), positions), atol=1e-12)


def test_positions_are_spread_evenly_and_repeat_themselves():
    positions = Positions(4, 100, 44).draw(4)
    assert positions.shape == (4, 11)
    assert all(len(set(image.tolist())) == 11 for image in positions)
    parts = Positions(4, 100, 44)
    assert torch.equal(positions, torch.cat([parts.draw(1), parts.draw(3)]))
    assert Positions(4, 5, 44).draw(4).shape == (4, 5)
    assert Positions(4, 5, 1).draw(4).shape == (4, 1)
