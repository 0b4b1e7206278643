import pytest
import torch

from repquant.numerics import second_moments as module
from repquant.numerics.moments import Mean
from repquant.numerics.second_moments import SecondMoments


@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize(("groups", "columns"), [(1, 20), (3, 7)])
def test_rows_in_parts_have_the_moments_of_all_rows(groups, columns, offset, monkeypatch):
    monkeypatch.setattr(module, "_ROWS", 50)
    monkeypatch.setattr(module, "_BLOCK", 8)
    torch.manual_seed(0)
    rows, weight = torch.randn(230, groups, columns) @ torch.randn(columns, columns) + offset, torch.rand(230)
    moments, sizes = SecondMoments(), [40, 30, 1, 99, 60]
    for part, counts in zip(rows.split(sizes), weight.split(sizes), strict=True):
        moments.update(part, counts)
    exact = rows.double().transpose(0, 1)
    weight = (weight / weight.sum()).double()
    mean = torch.einsum("r,grk->gk", weight, exact)
    varying = exact - mean.unsqueeze(1)
    torch.testing.assert_close(moments.mean().double(), mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        moments.moments(central=True).double(), varying.mT @ (varying * weight[:, None]), rtol=1e-4, atol=1e-3
    )
    torch.testing.assert_close(
        moments.moments(central=False).double(), exact.mT @ (exact * weight[:, None]), rtol=1e-4, atol=1e-3
    )


def test_no_more_rows_are_kept_than_are_added_at_once():
    moments = SecondMoments()
    for _ in range(100):
        moments.update(torch.randn(100, 1, 2), torch.ones(100))
        assert sum(len(rows) for rows, _ in moments._waiting) < module._ROWS


def test_mean_of_rows_in_parts():
    rows, weight = torch.randn(50, 3), torch.rand(50)
    mean = Mean()
    for part, counts in zip(rows.split(20), weight.split(20), strict=True):
        mean.update(part, counts)
    assert torch.allclose(mean.value(), weight @ rows / weight.sum(), atol=1e-6)
    assert mean.value().dtype == torch.float32
