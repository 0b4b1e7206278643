"""The same command twice, in two processes: the same bytes, but for times."""

import json
import os
import subprocess
import sys

import pytest

_OF_THE_CLOCK = ("seconds", "images_per_second")
_OF_THE_PLACE = ("output", "model")
_NOTES_WITH_TIMES = (" s", "images/s", "minutes of training")


def has_times(note):
    return any(words in note for words in _NOTES_WITH_TIMES)


def without_times(value):
    """A record without what the clock and the output folder decide."""
    if isinstance(value, dict):
        left = {key: without_times(each) for key, each in value.items()}
        return {key: each for key, each in left.items() if not key.endswith(_OF_THE_CLOCK) and key not in _OF_THE_PLACE}
    if isinstance(value, list):
        return [without_times(each) for each in value if not (isinstance(each, str) and has_times(each))]
    return value


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "verb",
    [
        ("ptq", "--target", "onnxruntime", "--calibrator", "mse", "--runtimes", "pytorch", "--rounding-images", "8"),
        ("analyze", "--target", "tensorrt", "--analysis-images", "8"),
        ("train", "--batch-size", "8", "--epochs", "1"),
        ("insert-bn", "--images", "8"),
        ("convert",),
    ],
    ids=lambda verb: verb[0],
)
def test_equal_runs_give_equal_bytes(verb, weights, photographs, small_options, tmp_path):
    suffix = ".safetensors" if verb[0] in ("insert-bn", "convert") else ""
    options = list(small_options[:4] if verb[0] == "convert" else small_options)
    options += [] if verb[0] == "train" else ["--weights", str(weights)]
    options += [] if verb[0] == "convert" else ["--data", str(photographs)]
    options += ["--calibration-images", "8"] if verb[0] in ("ptq", "analyze") else []
    for number in ("1", "2"):
        command = [sys.executable, "-m", "repquant", *verb, *options, "--output", str(tmp_path / f"{number}{suffix}")]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": number}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr
    first, second = (tmp_path / f"{number}{suffix}" for number in ("1", "2"))
    if suffix:
        assert first.read_bytes() == second.read_bytes()
        return
    names = [path.name for path in sorted(first.iterdir())]
    assert names == [path.name for path in sorted(second.iterdir())]
    for name in names:
        if name.endswith((".json", "analysis.md")):
            continue
        if not name.endswith(".pth"):  # has the times of its epochs
            assert (first / name).read_bytes() == (second / name).read_bytes(), name
    for name in [name for name in names if name.endswith(".json")]:
        records = [json.loads((folder / name).read_text()) for folder in (first, second)]
        assert without_times(records[0]) == without_times(records[1])
