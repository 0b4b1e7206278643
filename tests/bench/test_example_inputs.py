from pathlib import Path

import numpy as np
import pytest

from repquant.bench.inputs import make_inputs
from repquant.errors import InputError

PATH = Path("m.onnx")


def test_sizes_that_the_file_leaves_open_and_types_of_its_own():
    shapes = {"images": (None, 3, None, 32), "ids": (None, 7), "mask": (2, 7), "scale": ()}
    types = {"images": np.dtype("float32"), "ids": np.dtype("int64"), "mask": np.dtype("bool")}
    arrays = make_inputs(PATH, shapes, types, batch=2, size=5)
    assert list(arrays) == list(shapes)
    assert {name: array.shape for name, array in arrays.items()} == {
        "images": (2, 3, 5, 32), "ids": (2, 7), "mask": (2, 7), "scale": ()
    }  # fmt: skip
    assert [array.dtype.name for array in arrays.values()] == ["float32", "int64", "bool", "float32"]
    assert arrays["images"].std() == pytest.approx(1, abs=0.1)
    assert arrays["mask"].all()
    assert (arrays["ids"] == 1).all()


def test_a_batch_that_the_file_does_not_take():
    with pytest.raises(InputError, match=r"m.onnx takes batches of exactly 1 \(images\), and a batch of 16 was asked"):
        make_inputs(PATH, {"images": (1, 3, 8, 8)}, {}, batch=16, size=224)
