"""The two engines that read ONNX files, held to the same behavior."""

from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from repquant.errors import InputError
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
    with pytest.raises(InputError, match="takes images of shape 2 x 3 x 8 x 8, not 1 x 3 x 8 x 8"):
        runtime(np.zeros((1, 3, 8, 8), np.float32))


def test_model_that_is_no_classifier(engine, tmp_path):
    save_flatten(tmp_path / "two.onnx", {"a": ["n", 3, 8, 8], "b": ["n", 3, 8, 8]})
    with pytest.raises(InputError, match=r"two\.onnx has 2 inputs and 2 outputs; a classifier with one input"):
        engine(tmp_path / "two.onnx")(np.zeros((2, 3, 8, 8), np.float32))


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
