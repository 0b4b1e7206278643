from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from repquant.check import check
from repquant.errors import InputError
from repquant.targets.onnx_graph import blaming_the_file, graph_of, node_name, read_graph


@pytest.fixture
def path(good, tmp_path):
    onnx.save(good.model(), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_who_writes_and_reads_a_tensor(path):
    graph = read_graph(path)
    add = graph.producers["add_out"]
    assert node_name(add) == "add"
    assert [node_name(node) for node in graph.readers["add_out"]] == ["relu"]
    assert graph.producer("flatten_out", "Flatten").name == "pool"
    assert graph.opset == 21
    assert graph.shapes["images"] == ("batch", 4, 8, 8)
    assert graph.shapes["pool_out"][1:] == (4, 1, 1)


def test_constant_nodes_are_constants(sketch):
    value = numpy_helper.from_array(np.float32(3), "c")
    sketch.nodes.append(onnx.helper.make_node("Constant", [], ["c"], value=value))
    graph = sketch.give(sketch.node("Mul", sketch.image, "c")).graph()
    assert graph.array("c") == 3
    assert graph.array("images") is None


def test_operators_that_onnx_does_not_know_leave_shapes_open(sketch):
    sketch.give(sketch.node("Unknown", sketch.image))
    assert graph_of(sketch.model()).shapes["images"] == ("batch", 4, 8, 8)


def test_no_file(tmp_path):
    with pytest.raises(InputError, match=r"missing\.onnx does not exist; give an \.onnx file"):
        read_graph(tmp_path / "missing.onnx")


@pytest.mark.parametrize("content", [b"", b"\x7fELF\x02\x01\x01", b"plain text\n", None])
def test_no_onnx(path, content):
    path.write_bytes(path.read_bytes()[:-200] if content is None else content)
    with pytest.raises(InputError, match=r"model\.onnx is no ONNX file"):
        read_graph(path)


def test_an_engine(path):
    path.write_bytes(b"ftrt" + bytes(100))
    with pytest.raises(InputError, match=r"is a TensorRT engine; give the ONNX file that it was built from"):
        read_graph(path)


def test_external_data(good, tmp_path):
    path = tmp_path / "external.onnx"
    model = good.model()
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert np.array_equal(read_graph(path).array("head.w"), np.full((3, 4), 100, np.int8))
    (tmp_path / "weights.bin").rename(tmp_path / "elsewhere.bin")
    with pytest.raises(InputError, match=r"has tensors in weights\.bin, which is not beside it; copy it there"):
        read_graph(path)


def test_a_circle_ends(sketch, tmp_path):
    """What leads back to itself is followed once, and is no valid file."""
    s = sketch
    s.give(s.quantized(s.node("MaxPool", s.node("Reshape", "turn_out", "turn_out", name="turn"), kernel_shape=[1, 1])))
    graph = graph_of(s.model())
    assert graph.producer("turn_out", "Reshape") is None


def test_what_is_read_twice_is_followed_once(sketch, tmp_path):
    """Of 60 operators in a row, each with two ways to the next, there are 2 ** 60 ways to the end."""
    s = sketch
    pooled = s.node("MaxPool", s.quantized(s.image), kernel_shape=[1, 1])
    for _ in range(60):
        pooled = s.node("Reshape", pooled, pooled)
    path = tmp_path / "long.onnx"
    onnx.save(s.give(s.quantized(pooled, "end")).model(), path)
    check(path, "tensorrt")


def test_a_file_that_is_not_valid_is_to_blame():
    empty = onnx.ModelProto()
    with pytest.raises(InputError, match="is no valid ONNX file: "), blaming_the_file(Path("bad.onnx"), empty):
        raise KeyError("what is missing")


def test_tensors_elsewhere_are_not_read(sketch, tmp_path):
    (tmp_path / "secret").write_bytes(bytes(64))
    (tmp_path / "models").mkdir()
    path = tmp_path / "models" / "model.onnx"
    model = sketch.give(sketch.block(sketch.image)).model()
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], "../secret", 0, 16)
    model.graph.initializer[0].ClearField("raw_data")
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="its tensors can't be read from other files"):
        read_graph(path)
