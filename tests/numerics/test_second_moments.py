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
    rows = torch.randn(230, groups, columns) @ torch.randn(columns, columns) + offset
    moments = SecondMoments()
    for part in rows.split([40, 30, 1, 99, 60]):
        moments.update(part)
    exact = rows.double().transpose(0, 1)
    mean = exact.mean(1)
    varying = exact - mean.unsqueeze(1)
    torch.testing.assert_close(moments.mean().double(), mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        moments.moments(central=True).double(), varying.mT @ varying / len(rows), rtol=1e-4, atol=1e-3
    )
    torch.testing.assert_close(
        moments.moments(central=False).double(), exact.mT @ exact / len(rows), rtol=1e-4, atol=1e-3
    )


def test_no_more_rows_are_kept_than_are_added_at_once():
    moments = SecondMoments()
    for _ in range(100):
        moments.update(torch.randn(100, 1, 2))
        assert sum(map(len, moments._waiting)) < module._ROWS


def test_mean_of_rows_in_parts():
    rows = torch.randn(50, 3)
    mean = Mean()
    for part in rows.split(20):
        mean.update(part)
    assert torch.allclose(mean.value(), rows.mean(0))
    assert mean.value().dtype == torch.float32
