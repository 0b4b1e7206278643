"""The two engines that read ONNX files, held to the same behavior."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from repquant.errors import InputError
from repquant.runtimes.classifier import Classifier
from repquant.runtimes.executed import NamesKernels
from repquant.runtimes.interface import Runtime
from repquant.runtimes.onnxruntime import OnnxRuntime
from repquant.runtimes.openvino import OpenVinoRuntime

ENGINES = (OnnxRuntime, OpenVinoRuntime)

pytestmark = pytest.mark.parametrize("engine", ENGINES)


def save_flatten(path: Path, inputs: dict[str, list[str | int]]) -> None:
    """One output for each input: the same numbers, flat."""
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()]
    outputs = [helper.make_tensor_value_info(f"{i.name}_out", TensorProto.FLOAT, None) for i in infos]
    nodes = [helper.make_node("Flatten", [i.name], [f"{i.name}_out"]) for i in infos]
    graph = helper.make_graph(nodes, "flatten", infos, outputs)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)


def test_float_model_runs_in_float32(engine, float_model, images):
    # bfloat16, which OpenVINO picks by itself on some CPUs, would be wrong by 1e-2.
    np.testing.assert_allclose(engine(float_model.path)(images), float_model.reference(images), atol=1e-5)


def test_integer_model_is_exact_to_the_last_bit(engine, qdq_model, images):
    np.testing.assert_array_equal(engine(qdq_model.path)(images), qdq_model.reference(images))


def test_quantizers_without_zero_point_are_unsigned(engine, qdq_model, images, tmp_path):
    model = onnx.load(qdq_model.path)
    for node in model.graph.node:
        if len(node.input) == 3 and node.input[2] in ("activation_zero", "feature_zero"):  # uint8 0, the default
            del node.input[2:]
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, tmp_path / "foreign.onnx")
    np.testing.assert_array_equal(engine(tmp_path / "foreign.onnx")(images), qdq_model.reference(images))


@pytest.mark.parametrize("model", ["float_model", "qdq_model"])
def test_any_batch_size_in_one_session(engine, model, images, request):
    model = request.getfixturevalue(model)
    runtime, expected = engine(model.path), model.reference(images)
    for start, stop in [(0, 12), (4, 5), (3, 10), (0, 12)]:
        np.testing.assert_allclose(runtime(images[start:stop]), expected[start:stop], atol=1e-5)


def test_results_outlive_the_next_call(engine, float_model, images):
    runtime = engine(float_model.path)
    first = runtime(images[:4])
    kept = first.copy()
    runtime(images[4:8])
    np.testing.assert_array_equal(first, kept)


def test_input_is_left_alone(engine, qdq_model, images):
    given = images.copy()
    engine(qdq_model.path)(given)
    np.testing.assert_array_equal(given, images)


def test_describes_itself(engine, float_model, images):
    runtime: Runtime = engine(float_model.path, threads=1)
    assert runtime.name in ("onnxruntime", "openvino")
    assert runtime.version == version(runtime.name)
    logits = runtime(images)
    assert logits.dtype == np.float32
    assert logits.shape == (12, 10)


def test_missing_file(engine, tmp_path):
    with pytest.raises(InputError, match=r"missing\.onnx does not exist; give an \.onnx file"):
        engine(tmp_path / "missing.onnx")


@pytest.mark.parametrize("keep", [0, 0.5])
def test_truncated_file_is_named(engine, keep, float_model, tmp_path):
    content = float_model.path.read_bytes()
    path = tmp_path / "half.onnx"
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(InputError, match=r"can't load .*half\.onnx: .+; is it a complete ONNX file\?"):
        engine(path)


def test_other_image_size(engine, float_model):
    with pytest.raises(InputError, match="takes images of shape any x 3 x 8 x 8, not 2 x 3 x 16 x 8; choose the image"):
        engine(float_model.path)(np.zeros((2, 3, 16, 8), np.float32))


def test_fixed_batch(engine, tmp_path):
    save_flatten(tmp_path / "fixed.onnx", {"images": [2, 3, 8, 8]})
    runtime = engine(tmp_path / "fixed.onnx")
    assert runtime(np.zeros((2, 3, 8, 8), np.float32)).shape == (2, 192)
    with pytest.raises(InputError, match="takes batches of exactly 2 images, and one has 1, as the last may have"):
        runtime(np.zeros((1, 3, 8, 8), np.float32))


def test_several_inputs_and_outputs(engine, tmp_path):
    save_flatten(tmp_path / "two.onnx", {"a": ["n", 3, 8, 8], "b": ["n", 3, 8, 8]})
    runtime = engine(tmp_path / "two.onnx")
    a, b = (np.full((2, 3, 8, 8), value, np.float32) for value in (1, 2))
    outputs = runtime(a, b)
    assert [(x.shape, float(x.max())) for x in outputs] == [((2, 192), 1), ((2, 192), 2)]
    with pytest.raises(InputError, match=r"two\.onnx takes 2 inputs, not 1"):
        runtime(a)


def test_inputs_and_outputs_by_name(engine, tmp_path):
    save_flatten(tmp_path / "two.onnx", {"a": ["n", 3, 8, 8], "b": ["n", 1, 2]})
    runtime = engine(tmp_path / "two.onnx")
    assert runtime.inputs == {"a": (None, 3, 8, 8), "b": (None, 1, 2)}
    a, b = np.full((2, 3, 8, 8), 7, np.float32), np.full((2, 1, 2), 5, np.float32)
    outputs = runtime.run({"b": b, "a": a})
    np.testing.assert_array_equal(outputs["a_out"], a.reshape(2, -1))
    np.testing.assert_array_equal(outputs["b_out"], b.reshape(2, -1))
    with pytest.raises(InputError, match=r"two\.onnx takes a, b, not a, images"):
        runtime.run({"a": a, "images": b})


def test_executed_operators_say_which_products_are_of_integers(engine, float_model, qdq_model):
    def products(model):
        return [operator for operator in engine(model.path).executed() if operator.is_product]

    assert not any(operator.is_integer for operator in products(float_model))
    assert any(operator.is_integer for operator in products(qdq_model))


def test_openvino_names_the_kernels_of_integer_products(engine, float_model, qdq_model):
    if engine is not OpenVinoRuntime:
        assert not isinstance(engine(qdq_model.path), NamesKernels)
        return
    named = engine(qdq_model.path).integer_kernels()
    assert named == sorted(set(named))
    assert all(kernel.lower().endswith("i8") for kernel in named)
    assert named
    assert engine(float_model.path).integer_kernels() == []


def save_identity(path: Path, kind: int, shape: list[str | int], node: str = "Flatten") -> None:
    infos = [helper.make_tensor_value_info(name, kind, shape if name == "a" else None) for name in ("a", "b")]
    graph = helper.make_graph([helper.make_node(node, ["a"], ["b"])], "g", infos[:1], infos[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)


def test_images_of_another_type(engine, tmp_path):
    save_identity(tmp_path / "double.onnx", TensorProto.DOUBLE, ["n", 3, 8, 8])
    with pytest.raises(InputError, match=r"double\.onnx takes images as (tensor\(double\)|f64); export it so that"):
        engine(tmp_path / "double.onnx")(np.zeros((1, 3, 8, 8), np.float32))


def test_a_scalar_for_an_image(engine, tmp_path):
    save_identity(tmp_path / "scalar.onnx", TensorProto.FLOAT, [], "Identity")
    with pytest.raises(InputError, match=r"scalar\.onnx takes images of shape of no dimensions, not 1 x 3 x 8 x 8"):
        engine(tmp_path / "scalar.onnx")(np.zeros((1, 3, 8, 8), np.float32))


def test_an_output_that_is_no_logits(engine, tmp_path):
    save_identity(tmp_path / "same.onnx", TensorProto.FLOAT, ["n", 3, 8, 8], "Relu")
    with pytest.raises(InputError, match=r"same\.onnx gives an output of shape \(2, 3, 8, 8\) for 2 images"):
        Classifier(engine(tmp_path / "same.onnx"), tmp_path / "same.onnx")(np.zeros((2, 3, 8, 8), np.float32))


@pytest.mark.parametrize("reason", ["std::bad_alloc", "Failed to allocate memory for requested buffer", "broken"])
def test_an_engine_that_fails_says_why(engine, float_model, images, monkeypatch, reason):
    runtime = engine(float_model.path)

    class Failing:
        def run(self, *_):
            raise RuntimeError(f"somewhere.cpp:12\n{reason}")

        infer = lambda self, *_, **__: self.run()  # noqa: E731

    monkeypatch.setattr(runtime, "_session" if engine is OnnxRuntime else "_request", Failing())
    with pytest.raises(InputError if reason == "broken" else MemoryError, match=reason):
        runtime(images)


def test_a_file_that_is_no_classifier(engine, tmp_path):
    save_flatten(tmp_path / "two.onnx", {"a": ["n", 3, 8, 8], "b": ["n", 3, 8, 8]})
    with pytest.raises(InputError, match=r"two\.onnx has 2 inputs and 2 outputs; a classifier with one input"):
        Classifier(engine(tmp_path / "two.onnx"), tmp_path / "two.onnx")


ENDS = """
import signal, sys
from pathlib import Path
from repquant.runtimes.onnxruntime import OnnxRuntime
from repquant.runtimes.openvino import OpenVinoRuntime

signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
path = Path(sys.argv[2])
first, second = (globals()[sys.argv[1]](path) for _ in range(2))
del first
del second
signal.raise_signal(signal.SIGUSR1)
"""


def test_signals_are_handled_after_sessions_that_ended_in_the_order_they_began(engine, float_model):
    command = [sys.executable, "-c", ENDS, engine.__name__, str(float_model.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "handled\n")
