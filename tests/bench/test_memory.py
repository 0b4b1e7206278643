import json

import pytest

from repquant.bench import memory


def test_what_loading_and_running_adds(monkeypatch):
    """The peak is read before the file is loaded and after the last run."""
    peaks, log = iter([100.0, 142.5]), []

    def read():
        log.append("peak")
        return next(peaks)

    def open_runtime(name, path, threads):
        log.append((name, path.name, threads))
        return lambda x: log.append((x.shape, x.dtype.name))

    monkeypatch.setattr(memory, "open_runtime", open_runtime)
    asked = {"runtime": "onnxruntime", "path": "m.onnx", "inputs": {"x": [[2, 3], "int64"]}, "threads": 2}
    assert memory.measure(json.dumps(asked), read) == 42.5
    assert log == ["peak", ("onnxruntime", "m.onnx", 2), *[((2, 3), "int64")] * 3, "peak"]


def test_a_process_that_fails_tells_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(memory.sys, "executable", "/bin/false")
    assert memory.own_memory("onnxruntime", tmp_path / "m.onnx", {}) is None


@pytest.mark.skipif(not memory._STATUS.exists(), reason="/proc is Linux's")
def test_this_process_has_a_peak():
    assert memory.peak_mb() > 1
