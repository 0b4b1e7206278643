import torch
from hypothesis import given
from hypothesis import strategies as st

from repquant.numerics.moments import Moments


def feature_map(images, seed, offset=0.0):
    return torch.randn(images, 3, 4, 5, generator=torch.Generator().manual_seed(seed)) + offset


def test_they_are_those_of_torch():
    x = feature_map(6, seed=0)
    moments = Moments.of(x)
    assert moments.count == 6 * 20
    assert torch.allclose(moments.mean, x.double().mean((0, 2, 3)))
    assert torch.allclose(moments.variance, x.double().var((0, 2, 3), correction=0))


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.floats(-1e4, 1e4))
def test_parts_merge_to_the_whole(sizes, offset):
    x = feature_map(sum(sizes), seed=1, offset=offset)
    merged = Moments.none(3)
    for part in x.split(sizes):
        merged = merged.merge(Moments.of(part))
    whole = Moments.of(x)
    assert merged.count == whole.count
    assert torch.allclose(merged.mean, whole.mean, rtol=1e-12)
    assert torch.allclose(merged.variance, whole.variance, rtol=1e-9)


def test_nothing_merges_with_nothing():
    nothing = Moments.none(2).merge(Moments.none(2))
    assert nothing.count == 0
    assert nothing.variance.tolist() == [0.0, 0.0]
