"""Memory does not grow with the number of images, whatever the method: tensors that are alive are counted."""

import gc
from functools import partial

import pytest
import torch

from repquant.graph.shelf import Shelf
from repquant.methods.method import PtqMethod, ReconstructionOptions
from repquant.quantize import quantize

OPTIONS = ReconstructionOptions(steps=2, batch=8, drop=0.5, granularity="block")


class Batches:
    """Batches that are made when they are asked for; each time, and at each progress, live bytes are counted."""

    def __init__(self, count):
        self.count = count
        self.largest = 0

    def __iter__(self):
        generator = torch.Generator().manual_seed(3)
        for _ in range(self.count):
            self.look()
            yield torch.randn(4, 3, 16, 24, generator=generator)

    def look(self, *_):
        gc.collect()  # what only cycles hold is no longer in use
        alive = {x.data_ptr(): x.nbytes for x in gc.get_objects() if type(x) is torch.Tensor and x.ndim > 1}
        self.largest = max(self.largest, sum(alive.values()))


@pytest.fixture(autouse=True)
def _old_objects_do_not_count():
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize("rounding", ["nearest", "feedback", "learned"])
def test_memory_does_not_grow_with_the_number_of_images(mixed, rounding, monkeypatch):
    budget = 60_000  # less than the images of the shorter run
    for module in ("feedback", "reconstruct"):
        monkeypatch.setattr(f"repquant.methods.{module}.Shelf", partial(Shelf, budget))
    method = PtqMethod(equalization="none", rounding=rounding, reconstruction=OPTIONS)
    monkeypatch.setattr("repquant.numerics.second_moments._ROWS", 1)  # none wait
    monkeypatch.setattr("repquant.methods.row_samples.ROWS", 72)  # as many as the longer run has images
    few, many = Batches(6), Batches(18)
    for batches in (few, many):
        quantize(mixed, batches, method=method, rounding_images=1000, on_progress=batches.look)
    assert many.largest < few.largest + budget
