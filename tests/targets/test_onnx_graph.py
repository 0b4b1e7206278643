import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from repquant.errors import InputError
from repquant.targets.onnx_graph import graph_of, node_name, read_graph


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
