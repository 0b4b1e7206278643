"""A file in, a network out: what is read, how it is named, which batches it takes, and what is refused."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx_files import export, model_of, read, save
from torch import nn
from torch.nn import functional as F

import repquant as rq
from repquant.errors import InputError


class Block(nn.Module):
    """A block with branches, a gate and a head; its flattening names the batch."""

    def __init__(self):
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)
        self.head = nn.Sequential(nn.Linear(3, 8), nn.GELU(), nn.Linear(8, 5))

    def forward(self, image):
        x = F.silu(self.wide(image) + self.narrow(image) + image)
        x = x * torch.sigmoid(x.mean((2, 3), keepdim=True))
        return self.head(x.mean((2, 3)).reshape(image.shape[0], 1, 3)).reshape(image.shape[0], 5)


@pytest.fixture(scope="module")
def block():
    torch.manual_seed(0)
    return Block().eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=["script", "program"])
def path(request, block, images, tmp_path_factory):
    return export(block, images[:2], tmp_path_factory.mktemp(request.param) / "model.onnx", request.param)


def test_a_file_becomes_the_network_that_it_came_from(path, block, images):
    network = rq.read_onnx(path)
    with torch.no_grad():
        torch.testing.assert_close(network(images), block(images), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(network(image=images[:1]), block(images[:1]), rtol=1e-5, atol=1e-5)


def test_branches_become_one_convolution_and_pieces_one_operator(path, block, images):
    deploy = rq.reparameterize(rq.read_onnx(path), images)
    report = deploy.meta["reparameterization"]
    assert [(group.paths, group.kernel) for group in report.groups] == [(3, (3, 3))]
    targets = [str(node.target) for node in deploy.graph.nodes]
    assert "aten.silu.default" in targets
    assert "aten.gelu.default" in targets
    assert "aten.erf.default" not in targets
    linear = {name: layer for name, layer in deploy.named_modules() if isinstance(layer, nn.Linear)}
    assert list(linear) == ["head.0", "head.2"]
    assert all(layer.bias is not None for layer in linear.values())


def test_it_is_quantized_and_proved_as_any_network(path, images, tmp_path):
    network = rq.read_onnx(path)
    int8 = rq.quantize(network, [images, images], target="onnxruntime")
    assert [layer.name for layer in int8.layers if layer.precision != "float32"][-1] == "head.2"
    int8.save(tmp_path / "int8.onnx")
    (output,) = (rq.load(tmp_path / "int8.onnx")(images.numpy()),)
    with torch.no_grad():
        simulated = int8(images)
    assert float((torch.from_numpy(output) - simulated).abs().max() / simulated.abs().max()) < 0.02


@pytest.mark.parametrize("exporter", ["script", "program"])
def test_a_file_for_one_batch_takes_any(block, images, tmp_path, exporter):
    path = export(block, images[:1], tmp_path / "one.onnx", exporter, free=False)
    network = rq.read_onnx(path)
    assert network.program.batch is None
    with torch.no_grad():
        torch.testing.assert_close(network(images), block(images), rtol=1e-5, atol=1e-5)


def test_a_file_that_computes_with_its_batch_takes_no_other(tmp_path):
    nodes = [helper.make_node("Add", ["x", "per_image"], ["y"])]
    x = np.zeros((2, 3), np.float32)
    path = save(model_of(nodes, {"x": x}, {"per_image": np.float32([[0], [1]])}), tmp_path / "two.onnx")
    network = rq.read_onnx(path)
    assert network(torch.zeros(2, 3)).tolist() == [[0, 0, 0], [1, 1, 1]]
    with pytest.raises(InputError, match="batches of exactly 2, and one has 4; give such batches"):
        network(torch.zeros(4, 3))
    with pytest.raises(InputError, match="batches of exactly 2, and one has 4"):
        rq.quantize(network, [torch.zeros(4, 3)], target="onnxruntime")


class Tokens(nn.Module):
    """Reads the size of the batch in all the ways that vision transformers do."""

    def __init__(self):
        super().__init__()
        self.token, self.patches = nn.Parameter(torch.randn(1, 1, 6)), nn.Conv2d(3, 6, 4, stride=4)

    def forward(self, image):
        count = image.shape[0]
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(count, -1, -1), x, torch.zeros(count, 2, 6)], dim=1)
        heads = x.reshape(count, x.shape[1], 2, 3).transpose(1, 2)
        weights = torch.softmax(heads @ heads.transpose(-2, -1), -1)
        x = (weights @ heads).transpose(1, 2).reshape(count, -1, 6)
        return x[torch.arange(count), 0]


@pytest.mark.parametrize("exporter", ["script", "program"])
def test_sizes_are_no_data(images, tmp_path, exporter):
    torch.manual_seed(0)
    module = Tokens().eval()
    deploy = rq.reparameterize(rq.read_onnx(export(module, images[:2], tmp_path / "t.onnx", exporter)), images[:2])
    assert deploy.meta["repquant"].dynamic_batch
    with torch.no_grad():
        for count in (1, 5):
            torch.testing.assert_close(deploy(images[:count]), module(images[:count]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("gate", "attributes"), [("Sigmoid", {}), ("HardSigmoid", {"alpha": 1 / 6})])
@pytest.mark.parametrize("is_read_again", [False, True])
def test_a_gate_of_itself_is_one_operator_where_nobody_else_reads_it(gate, attributes, is_read_again, tmp_path):
    last = helper.make_node("Add", ["y", "g" if is_read_again else "x"], ["z"])
    nodes = [helper.make_node(gate, ["x"], ["g"], **attributes), helper.make_node("Mul", ["g", "x"], ["y"]), last]
    network = rq.read_onnx(save(model_of(nodes, {"x": X}, open_batch=True), tmp_path / "gate.onnx"))
    assert len(network.program.steps) == (3 if is_read_again else 2)


def test_several_inputs_and_outputs_have_their_names(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["left.1", "w"], ["a"]),
        helper.make_node("Add", ["a", "right"], ["sum"]),
        helper.make_node("Split", ["sum"], ["first", "other/part"], axis=1, num_outputs=2),
    ]
    inputs = {"left.1": np.zeros((2, 3), np.float32), "right": np.zeros((2, 4), np.float32)}
    model = model_of(nodes, inputs, {"w": np.ones((3, 4), np.float32)}, open_batch=True)
    network = rq.read_onnx(save(model, tmp_path / "two.onnx"))
    x, y = torch.ones(5, 3), torch.ones(5, 4)
    by_place, by_name = network(x, y), network(right=y, left_1=x)
    assert by_place.keys() == by_name.keys() == {"first", "other_part"}
    assert torch.equal(by_place["first"], torch.full((5, 2), 4.0))
    int8 = rq.quantize(network, [(x, y)], target="onnxruntime")
    assert list(int8(x, y)) == ["first", "other_part"]
    with pytest.raises(InputError, match=r"`example` doesn't fit the inputs of the file, left\.1, right"):
        rq.read_onnx(tmp_path / "two.onnx", example=x)


def test_layers_are_named_by_their_weights_or_nodes(tmp_path):
    weight = np.zeros((3, 3, 1, 1), np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "body.0.weight"], ["a"], name="whatever"),
        helper.make_node("Conv", ["a", "onnx::Conv_7"], ["b"], name="/body/body.1/body.1.0/Conv"),
        helper.make_node("Conv", ["b", "onnx::Conv_8"], ["c"], name="model/stage two/Conv2D:0"),
        helper.make_node("Conv", ["c", "onnx::Conv_9"], ["d"], name="forward"),
    ]
    constants = {"body.0.weight": weight} | {f"onnx::Conv_{index}": weight + index for index in (7, 8, 9)}
    path = save(model_of(nodes, {"x": np.zeros((2, 3, 4, 4), np.float32)}, constants), tmp_path / "names.onnx")
    names = [name for name, _ in read(path).named_parameters()]
    assert names == ["body.0.weight", "body.1.0.weight", "model.stage_two.Conv2D_0.weight", "forward_.weight"]


CONV = helper.make_node("Conv", ["x", "w"], ["y"], name="conv")
X = np.zeros((2, 3, 4, 4), np.float32)
W = np.zeros((3, 3, 1, 1), np.float32)


def branching():
    same = helper.make_node("Identity", ["x"], ["z"])
    body = helper.make_graph([same], "body", [], [helper.make_empty_tensor_value_info("z")])
    first = helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0)
    positive = helper.make_node("Greater", ["most", "limit"], ["is_positive"])
    choice = helper.make_node("If", ["is_positive"], ["y"], name="choice", then_branch=body, else_branch=body)
    return model_of([first, positive, choice], {"x": X}, {"limit": np.float32(0)})


def quantized():
    q = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"])
    dq = helper.make_node("DequantizeLinear", ["q", "s", "z"], ["x8"])
    constants = {"w": W, "s": np.float32(0.1), "z": np.int8(0)}
    return model_of([q, dq, helper.make_node("Conv", ["x8", "w"], ["y"])], {"x": X}, constants)


def foreign():
    model = model_of([CONV], {"x": X}, {"w": W})
    model.graph.node[0].domain, model.graph.node[0].op_type = "com.microsoft", "FusedConv"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


def renamed():
    model = model_of([CONV], {"x": X}, {"w": W})
    model.graph.node[0].op_type = "NonMaxSuppression"
    return model


def without_inputs():
    return model_of([helper.make_node("Conv", ["c", "w"], ["y"])], {}, {"c": X, "w": W})


def in_a_circle():
    return model_of([helper.make_node("Add", ["y", "x"], ["z"]), helper.make_node("Relu", ["z"], ["y"])], {"x": X})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: model_of([CONV], {"x": X}, {"w": W}, opset=9), "has opset 9; allowed are 13 to 22: export it again"),
        (lambda: model_of([CONV], {"x": X}, {"w": W}, opset=23), "has opset 23; allowed are 13 to 22"),
        (lambda: model_of([CONV], {"x": X.astype(np.float16)}, {"w": W.astype(np.float16)}), "of type float16; export"),
        (lambda: model_of([CONV], {"x": X.astype(np.float64)}, {"w": W.astype(np.float64)}), "of type double; export"),
        (branching, "decides while it runs what to compute: If choice; export the network without control flow"),
        (quantized, r"is quantized already \(DequantizeLinear, QuantizeLinear\); give the float file"),
        (foreign, r"operators of com\.microsoft, which only some runtimes know"),
        (renamed, r"can't be read: NonMaxSuppression \(first NonMaxSuppression conv\)"),
        (without_inputs, "takes no inputs"),
        (in_a_circle, "is no valid ONNX file: Add z reads y, which nothing before it writes"),
    ],
)
def test_what_is_refused(make, words, tmp_path):
    model = make()
    path = save(model, tmp_path / "model.onnx")
    with pytest.raises(InputError, match=words):
        rq.read_onnx(path)


def test_no_file_and_no_onnx(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        rq.read_onnx(tmp_path / "gone.onnx")
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(InputError, match="is no ONNX file"):
        rq.read_onnx(tmp_path / "text.onnx")


def test_tensors_in_a_file_that_is_missing(tmp_path):
    path = tmp_path / "model.onnx"
    model = model_of([CONV], {"x": X}, {"w": W})
    onnx.save_model(model, path, save_as_external_data=True, location="model.data", size_threshold=0)
    assert rq.read_onnx(path)(torch.zeros(2, 3, 4, 4)).shape == (2, 3, 4, 4)
    (tmp_path / "model.data").unlink()
    with pytest.raises(InputError, match=r"has tensors in model\.data, which is not beside it"):
        rq.read_onnx(path)


def test_constants_in_all_their_forms(tmp_path):
    nodes = [
        helper.make_node("Constant", [], ["two"], value_float=2.0),
        helper.make_node("Constant", [], ["axes"], value_ints=[2, 3]),
        helper.make_node("Constant", [], ["three"], value=numpy_helper.from_array(np.float32([3]))),
        helper.make_node("Mul", ["x", "two"], ["a"]),
        helper.make_node("Add", ["a", "three"], ["b"]),
        helper.make_node("ReduceMean", ["b", "axes"], ["y"], keepdims=0),
    ]
    network = rq.read_onnx(save(model_of(nodes, {"x": X}, open_batch=True), tmp_path / "constants.onnx"))
    assert network(torch.ones(2, 3, 4, 4)).tolist() == [[5, 5, 5], [5, 5, 5]]


def test_functions_of_the_file_are_written_out(tmp_path):
    twice = helper.make_function(
        "mine", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 21)]
    )
    model = model_of([helper.make_node("Relu", ["x"], ["y"])], {"x": X})
    model.graph.node[0].CopyFrom(helper.make_node("Twice", ["x"], ["y"], domain="mine"))
    model.functions.append(twice)
    model.opset_import.append(helper.make_opsetid("mine", 1))
    assert rq.read_onnx(save(model, tmp_path / "function.onnx"))(torch.ones(2, 3, 4, 4)).unique().tolist() == [2]


def test_a_size_that_the_file_leaves_open(tmp_path):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, "height", "width"])
    model = model_of([CONV], {"x": X}, {"w": W})
    model.graph.input[0].CopyFrom(x)
    network = rq.read_onnx(save(model, tmp_path / "open.onnx"), example=torch.zeros(2, 3, 5, 6))
    assert network(torch.zeros(1, 3, 7, 9)).shape == (1, 3, 7, 9)


def test_other_outputs_than_the_runtimes_are_refused(path, monkeypatch):
    monkeypatch.setattr("repquant.reader.arithmetic.F.silu", lambda x: x)
    with pytest.raises(InputError, match=r"output logits differs from that of ONNX Runtime by .* report this"):
        rq.read_onnx(path)
