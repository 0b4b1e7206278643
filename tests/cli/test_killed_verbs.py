"""kill -9 at any moment."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

MOMENTS = 25
"""For each of ptq, quantize, qat and train: 100 in all."""


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_killed_verb_leaves_nothing_half_written_and_the_next_one_is_as_if_it_had_not_been(
    weights, photographs, tmp_path, record_property
):
    command = [sys.executable, str(Path(__file__).with_name("killed_verbs.py"))]
    command += [str(tmp_path), str(weights), str(photographs), str(MOMENTS), "7"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    kills = {verb: found["kills"] for verb, found in report.items()}
    record_property("counts", {"tries": sum(kills.values()), "failures": 0} | kills)
    assert report.keys() == {"ptq", "quantize", "qat", "train"}
    for verb, found in report.items():
        assert found["kills"] >= MOMENTS
        assert found["files"], verb
