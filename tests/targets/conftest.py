"""Graphs that targets take as they are."""

import pytest
from sketch import Sketch


@pytest.fixture
def sketch():
    return Sketch()


@pytest.fixture
def good(sketch):
    """What every target runs in integers: two blocks with a residual, a pool and a classifier."""
    s = sketch
    first = s.quantized(s.block(s.image, "a"), "b.in")
    total = s.node("Add", s.conv(first, "b"), first, name="add")
    pooled = s.node("GlobalAveragePool", s.quantized(s.node("Relu", total, name="relu"), "pool.in"), name="pool")
    features = s.quantized(s.node("Flatten", pooled, name="flatten"), "head.in")
    return s.give(s.node("Gemm", features, s.weight("head", (3, 4)), name="head", transB=1))
