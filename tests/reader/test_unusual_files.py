"""Valid files that few exporters write: shared matrices, names that Python reserves, outputs that are constants."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx_files import model_of, read, save

import repquant as rq
from repquant.errors import InputError

GENERATOR = np.random.default_rng(0)
X = GENERATOR.standard_normal((3, 4)).astype(np.float32)
W, V = GENERATOR.standard_normal((2, 4, 4)).astype(np.float32)
B, C = GENERATOR.standard_normal((2, 4)).astype(np.float32)


def product(x, weight, bias, y):
    """Return the two nodes of x @ weight + bias."""
    return [
        helper.make_node("MatMul", [x, weight], [f"{y}.product"], name=f"/mlp/MatMul_{y}"),
        helper.make_node("Add", [f"{y}.product", bias], [y], name=f"/mlp/Add_{y}"),
    ]


SHARED_BIAS = [*product("x", "w", "a.bias", "h"), *product("h", "v", "a.bias", "y")], {"w": W, "v": V, "a.bias": B}
ONE_MODULE = [*product("x", "w", "b", "h"), *product("h", "v", "c", "y")], {"w": W, "v": V, "b": B, "c": C}
SHARED_MATRIX = (
    [
        *product("x", "fc.weight", "fc.bias", "h"),
        helper.make_node("MatMul", ["h", "fc.weight"], ["y"]),
    ],
    {"fc.weight": W, "fc.bias": B},
)


@pytest.mark.parametrize(
    ("nodes", "constants"), [SHARED_BIAS, ONE_MODULE, SHARED_MATRIX], ids=["bias", "module", "matrix"]
)
def test_two_matrices_stay_two(nodes, constants, tmp_path):
    path = save(model_of(nodes, {"x": X}, constants), tmp_path / "two.onnx")
    (expected,) = onnxruntime.InferenceSession(path).run(None, {"x": X})
    network = read(path)
    assert sum(value.ndim == 2 for value in network.parameters()) == 2
    with torch.no_grad():
        torch.testing.assert_close(network(torch.from_numpy(X)), torch.from_numpy(expected), rtol=1e-5, atol=1e-5)


def test_a_layer_whose_matrix_nobody_else_reads_keeps_its_name(tmp_path):
    model = model_of(product("x", "fc.weight", "fc.bias", "y"), {"x": X}, {"fc.weight": W, "fc.bias": B})
    assert dict(read(save(model, tmp_path / "one.onnx")).named_parameters()).keys() == {"fc.weight", "fc.bias"}


def elsewhere(location):
    tensor = TensorProto(name="k", data_type=TensorProto.FLOAT, dims=[4, 4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=str(location))
    return tensor


def in_a_node(tensor):
    nodes = [helper.make_node("Constant", [], ["k"], value=tensor), helper.make_node("MatMul", ["x", "k"], ["y"])]
    model = model_of(nodes[1:], {"x": X}, {"k": W})
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def in_a_function(tensor):
    nodes = [helper.make_node("Constant", [], ["k"], value=tensor), helper.make_node("MatMul", ["x", "k"], ["y"])]
    function = helper.make_function("mine", "Layer", ["x"], ["y"], nodes, [helper.make_opsetid("", 21)])
    model = model_of([helper.make_node("Relu", ["x"], ["y"])], {"x": X})
    model.graph.node[0].CopyFrom(helper.make_node("Layer", ["x"], ["y"], domain="mine"))
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("mine", 1))
    return model


@pytest.mark.parametrize("make", [in_a_node, in_a_function])
def test_no_tensor_is_read_from_another_folder(make, tmp_path):
    secret = tmp_path / "secret.bin"
    secret.write_bytes(W.tobytes())
    folder = tmp_path / "models"
    folder.mkdir()
    for location in (secret, "../secret.bin"):
        (folder / "model.onnx").write_bytes(make(elsewhere(location)).SerializeToString())
        with pytest.raises(InputError, match="its tensors can't be read from other files"):
            read(folder / "model.onnx")
    (folder / "beside.bin").write_bytes(W.tobytes())
    (folder / "model.onnx").write_bytes(make(elsewhere("beside.bin")).SerializeToString())
    with torch.no_grad():
        torch.testing.assert_close(read(folder / "model.onnx")(torch.from_numpy(X)), torch.from_numpy(X @ W))


@pytest.mark.parametrize("name", ["in", "lambda", "self", "args"])
def test_an_input_with_a_name_that_python_reserves(name, tmp_path):
    path = save(model_of([helper.make_node("Relu", [name], ["y"])], {name: X}), tmp_path / "name.onnx")
    torch.testing.assert_close(rq.read_onnx(path)(torch.from_numpy(X)), torch.from_numpy(X).relu())


def test_names_that_are_one_identifier(tmp_path):
    nodes = [helper.make_node("Sub", ["a.b", "a_b"], ["c.d"]), helper.make_node("Neg", ["c.d"], ["c_d"])]
    model = model_of(nodes, {"a.b": X, "a_b": 2 * X})
    model.graph.output.insert(0, helper.make_tensor_value_info("c.d", TensorProto.FLOAT, None))
    outputs = rq.read_onnx(save(model, tmp_path / "names.onnx"))(torch.from_numpy(X), torch.from_numpy(2 * X))
    assert list(outputs) == ["c_d", "c_d_1"]
    torch.testing.assert_close(outputs["c_d"], torch.from_numpy(-X))
    torch.testing.assert_close(outputs["c_d_1"], torch.from_numpy(X))


@pytest.mark.parametrize("name", ["program", "run"])
def test_a_layer_with_the_name_of_what_a_network_has(name, tmp_path):
    model = model_of([helper.make_node("MatMul", ["x", f"{name}.weight"], ["y"])], {"x": X}, {f"{name}.weight": W})
    network = rq.read_onnx(save(model, tmp_path / "layer.onnx"))
    assert [path for path, _ in network.named_parameters()] == [f"{name}_.weight"]


def test_an_output_that_is_a_constant(tmp_path):
    model = model_of([helper.make_node("Relu", ["x"], ["y"])], {"x": X})
    constant = np.ones(100, np.float32)
    model.graph.initializer.append(numpy_helper.from_array(constant, "k"))
    model.graph.node.append(helper.make_node("Identity", ["k"], ["z"]))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [100]))
    outputs = rq.read_onnx(save(model, tmp_path / "constant.onnx"))(torch.from_numpy(X))
    assert torch.equal(outputs["z"].detach(), torch.from_numpy(constant))


@pytest.mark.parametrize(
    ("node", "words"),
    [
        (
            helper.make_node("MaxPool", ["x"], ["y", "places"], kernel_shape=[2]),
            "its output 2 is read, and only 1 can be computed",
        ),
        (
            helper.make_node("Split", ["x"], ["a", "b", "c", "d"], axis=2, num_outputs=4),
            "its output 4 is read, and only 3 can be computed",
        ),
    ],
)
def test_an_output_that_is_not_computed(node, words, tmp_path):
    line = np.ones((2, 3, 9), np.float32)
    path = save(model_of([node], {"x": line}), tmp_path / "more.onnx")
    with pytest.raises(InputError, match=words):
        read(path)(torch.from_numpy(line))


def test_rows_of_a_matrix_counted_from_its_end(tmp_path):
    indices = np.array([[-1, 0]])
    nodes = [helper.make_node("Gather", ["x", "indices"], ["y"], axis=0)]
    path = save(model_of(nodes, {"x": X, "indices": indices}), tmp_path / "gather.onnx")
    network = read(path)
    assert torch.equal(network(torch.from_numpy(X), torch.from_numpy(indices)), torch.from_numpy(X[indices]))


@pytest.mark.parametrize("is_output", [True, False])
@pytest.mark.parametrize("selection", ["ArgMax", "TopK"])
def test_what_a_selection_reads_is_compared(selection, is_output, tmp_path, monkeypatch):
    nodes = [helper.make_node("Mish", ["x"], ["y"])]
    if selection == "ArgMax":
        nodes.append(helper.make_node("ArgMax", ["y"], ["place"], axis=1))
    else:
        nodes.append(helper.make_node("TopK", ["y", "k"], ["most", "place"], axis=1))
    nodes.append(helper.make_node("Identity", ["place"], ["z"]))
    model = model_of(nodes, {"x": X}, {"k": np.array([2])} if selection == "TopK" else {})
    if is_output:
        model.graph.output.insert(0, helper.make_tensor_value_info("y", TensorProto.FLOAT, None))
    path = save(onnx.shape_inference.infer_shapes(model), tmp_path / "selection.onnx")
    result = rq.read_onnx(path)(torch.from_numpy(X))
    assert isinstance(result, dict) == is_output
    monkeypatch.setattr(torch.nn.functional, "mish", lambda x: 2 * x)
    with pytest.raises(InputError, match=f"{'output' if is_output else 'value'} y differs from that of ONNX Runtime"):
        rq.read_onnx(path)


def growing(kind, *numbers, of="x", **attributes):
    names = [f"c{place}" if value is not None else "" for place, value in enumerate(numbers)]
    constants = {f"c{place}": value for place, value in enumerate(numbers) if value is not None}
    given = [of, *names] if of else names
    nodes = [helper.make_node(kind, given, ["grown"], **attributes), helper.make_node("ReduceSum", ["grown"], ["sum"])]
    nodes.append(helper.make_node("Add", ["x", "sum"], ["y"]))
    return nodes, constants | {"k": np.ones((1, 1, 1, 1), np.float32)}


LARGE = 300_000_000


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        growing("ConstantOfShape", np.array([LARGE]), of=""),
        growing("ConstantOfShape", np.array([10**6, 10**6]), of=""),
        growing("Expand", np.array([LARGE, 1, 1, 1]), of="k"),
        growing("Tile", np.array([1, 1, LARGE, 1]), of="k"),
        growing("Range", np.float32(0), np.float32(LARGE), np.float32(1), of=""),
        growing("Pad", np.array([0, 0, 0, 0, 0, 0, 0, LARGE])),
        growing("Resize", None, np.float32([1, 1, 30_000, 30_000])),
        growing("Resize", None, None, np.array([1, 1, 30_000, 30_000])),
    ],
)
@pytest.mark.parametrize("is_compared", [True, False])
def test_a_small_file_makes_no_large_tensors(nodes, constants, is_compared, tmp_path, monkeypatch):
    if not is_compared:
        monkeypatch.setattr("repquant.runtimes.available.installed", dict)
    image = np.ones((1, 1, 2, 2), np.float32)
    path = save(model_of(nodes, {"x": image}, constants), tmp_path / "large.onnx")
    with pytest.raises(InputError, match=r"large.onnx: .*allowed are at most 268435456"):
        rq.read_onnx(path)


def test_what_is_larger_than_the_file_but_not_large_is_read(tmp_path):
    nodes, constants = growing("ConstantOfShape", np.array([5000, 5000]), of="")
    path = save(model_of(nodes, {"x": X}, constants), tmp_path / "mask.onnx")
    assert torch.equal(rq.read_onnx(path)(torch.from_numpy(X)), torch.from_numpy(X))


def test_an_input_that_is_declared_too_large(tmp_path):
    model = model_of([helper.make_node("Relu", ["x"], ["y"])], {"x": X})
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 10**12
    with pytest.raises(InputError, match=r"input x has the sizes \[3, 1000000000000\]; allowed are at most 67108864"):
        rq.read_onnx(save(model, tmp_path / "input.onnx"))
