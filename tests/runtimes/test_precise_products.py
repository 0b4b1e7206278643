"""8-bit weights in ONNX Runtime, also where the CPU's 16-bit sums would saturate."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from repquant.runtimes import onnxruntime as onnxruntime_engine
from repquant.runtimes.cpu import Int8Support, int8_support
from repquant.runtimes.onnxruntime import OnnxRuntime
from repquant.runtimes.precise_products import PRECISE, own_constants


@pytest.fixture
def wide_model(qdq_model, tmp_path):
    """The Q/DQ network with every weight at an end of 8 bits, and images that meet it at the end of theirs."""
    model = onnx.load(qdq_model.path)
    for tensor in model.graph.initializer:
        if tensor.name == "kernel_q":
            values = np.where(numpy_helper.to_array(tensor) > 0, 127, -127).astype(np.int8)
            values[: len(values) // 2] = 127
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, tmp_path / "wide.onnx")
    return tmp_path / "wide.onnx", np.full((2, 3, 8, 8), 3.9, np.float32)


def reference(path, images):
    """The same graph without any fusion: each operator by itself, on floats that hold the integers exactly."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images})[0]


def test_wide_weights_are_exact_on_every_cpu(wide_model):
    path, images = wide_model
    np.testing.assert_array_equal(OnnxRuntime(path)(images), reference(path, images))


@pytest.mark.parametrize(
    ("safe", "model", "is_set"), [(False, "wide", True), (True, "wide", False), (False, "narrow", False)]
)
def test_the_slower_mode_is_for_where_it_is_needed(wide_model, qdq_model, monkeypatch, safe, model, is_set):
    monkeypatch.setattr(onnxruntime_engine, "int8_support", lambda: Int8Support(safe, ""))
    entries = []

    class Options(onnxruntime.SessionOptions):
        def add_session_config_entry(self, key, value):
            entries.append((key, value))
            super().add_session_config_entry(key, value)

    monkeypatch.setattr(onnxruntime, "SessionOptions", Options)
    OnnxRuntime(wide_model[0] if model == "wide" else qdq_model.path)
    assert (PRECISE in entries) == is_set


@pytest.mark.skipif(int8_support().safe, reason="this CPU adds products in 32 bits")
def test_without_it_this_cpu_saturates(wide_model, monkeypatch):
    path, images = wide_model
    monkeypatch.setattr(onnxruntime_engine, "int8_support", lambda: Int8Support(True, ""))
    assert np.abs(OnnxRuntime(path)(images) - reference(path, images)).max() > 0


def test_each_node_has_constants_of_its_own(qdq_model, images):
    model = own_constants(onnx.load(qdq_model.path))
    onnx.checker.check_model(model, full_check=True)
    constants = {tensor.name for tensor in model.graph.initializer}
    quantizers = [node for node in model.graph.node if "Linear" in node.op_type]
    read = [name for node in quantizers for name in node.input if name in constants]
    assert len(read) == len(set(read))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(None, {"images": images})[0], qdq_model.reference(images))
