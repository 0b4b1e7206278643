"""Where the time goes, as each engine's profiler tells it."""

from datetime import timedelta
from types import SimpleNamespace

import pytest

from repquant.runtimes.interface import ProfiledRuntime
from repquant.runtimes.onnxruntime import OnnxRuntime
from repquant.runtimes.onnxruntime import layer_times as of_events
from repquant.runtimes.openvino import OpenVinoRuntime
from repquant.runtimes.openvino import layer_times as of_infos


def event(name, index, kind, microseconds, *types):
    shapes = [{kind: [1]} for kind in types]
    args = {"op_name": kind, "node_index": str(index), "input_type_shape": shapes}
    return {"cat": "Node", "name": f"{name}_kernel_time", "dur": microseconds, "args": args}


def run_of_three(conv, pool):
    """Two nodes have the same name; the session's own events are not operators."""
    return [
        {"cat": "Session", "name": "model_run", "dur": 1000},
        event("q", 0, "QuantizeLinear", 1, "float"),
        event("same", 1, "QLinearConv", conv, "uint8", "float", "int8"),
        event("same", 2, "AveragePool", pool, "float"),
    ]


def test_events_of_onnx_runtime_are_the_median_of_the_runs_behind_the_first():
    events = [*run_of_three(90_000, 90_000), *run_of_three(3, 30), *run_of_three(1, 10), *run_of_three(2, 20)]
    assert [(layer.name, layer.kind, layer.precision, layer.milliseconds) for layer in of_events(events)] == [
        ("q", "QuantizeLinear", "reformat", 0.001),
        ("same", "QLinearConv", "INT8", 0.002),
        ("same", "AveragePool", "FP32", 0.02),
    ]


@pytest.mark.parametrize(
    ("kind", "kernel", "precision"),
    [
        ("Convolution", "brgconv_avx512_I8", "INT8"),
        ("Convolution", "jit_avx2_f32", "FP32"),
        ("FullyConnected", "brgemm_avx512_amx_BF16", "BF16"),
        ("Reorder", "jit_uni_I8", "reformat"),
        ("MVN", "undef", "other"),
    ],
)
def test_kernels_of_openvino_say_what_they_compute_in(kind, kernel, precision):
    info = SimpleNamespace(node_name="n", node_type=kind, exec_type=kernel, real_time=timedelta(microseconds=1500))
    (layer,) = of_infos([info])
    assert (layer.kind, layer.precision, layer.milliseconds) == (f"{kind} {kernel}", precision, 1.5)
    assert layer.is_float == (precision in ("FP32", "BF16"))


@pytest.mark.parametrize("engine", [OnnxRuntime, OpenVinoRuntime])
def test_the_engines_tell_of_their_convolutions(engine, float_model, qdq_model, images):
    for model, precision in ((float_model, "FP32"), (qdq_model, "INT8")):
        opened = engine(model.path, 1)
        assert isinstance(opened, ProfiledRuntime)
        convolutions = [layer for layer in opened.profile(images, runs=2) if "Conv" in layer.kind.split()[0]]
        assert [layer.precision for layer in convolutions if "Convert" not in layer.kind] == [precision]
