"""Damaged ONNX files before the rules that are read off them: a list of findings, or a sentence that names the file."""

import random

import pytest

from mutations import Tries, mutated
from repquant.check import check

MUTATIONS = 500


@pytest.mark.slow
def test_damaged_files(good, tmp_path, record_property):
    dice, tries = random.Random(0), Tries()
    record_property("counts", tries.counts)
    path = tmp_path / "model.onnx"
    content = good.model().SerializeToString()
    for _ in range(MUTATIONS):
        path.write_bytes(mutated(content, dice))
        tries.read(lambda: [str(finding) for finding in check(path, "tensorrt")], str(path))
    tries.require_none_failed()
    assert tries.counts["refusals"] > MUTATIONS / 10
