import numpy as np
import onnx
import pytest

from repquant.bench import peak
from repquant.runtimes.available import open_runtime


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_the_engines_multiply_in_integers(runtime, tmp_path):
    onnx.save(peak.products(64, 2), tmp_path / "p.onnx")
    engine = open_runtime(runtime, tmp_path / "p.onnx", 1)
    layers = engine.profile(np.ones((64, 64), np.float32), runs=1)
    products = [layer for layer in layers if "MatMul" in layer.kind or "FullyConnected" in layer.kind]
    assert [layer.precision for layer in products] == ["INT8", "INT8"], layers


def test_giga_multiplications_a_second(monkeypatch):
    """Four products of 1024^3 in 0.4 seconds, the fastest round."""
    monkeypatch.setattr(peak, "open_runtime", lambda *_: None)
    monkeypatch.setattr(peak, "measure_latency", lambda calls, **_: {name: [500.0, 400.0, 900.0] for name in calls})
    assert peak.int8_peak("onnxruntime", 1) == pytest.approx(4 * 1024**3 / 1e9 / 0.4)
