"""The library's verbs, as a program calls them."""

import copy
import doctest
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import repquant as rq
from repquant.errors import InputError


class Small(nn.Module):
    """A residual, a gate, and an output that is no logits."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv, self.gate = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, image):
        x = F.relu(self.bn(self.stem(image)))
        x = F.relu(x + self.conv(x)) * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        return {"logits": self.head(x.mean((2, 3))), "map": torch.softmax(x, 1)}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Small().eval()


@pytest.fixture(scope="module")
def batches():
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(8, 3, 16, 16, generator=generator), torch.randint(0, 4, (8,), generator=generator))
        for _ in range(2)
    ]


@pytest.fixture(scope="module")
def int8(model, batches):
    return rq.quantize(model, batches, target=rq.resolve_target("onnxruntime"))


def test_the_input_is_not_changed(model, batches):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    rq.quantize(model, batches)
    assert model.training
    model.eval()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_what_it_returns_is_what_the_module_returns(model, batches, int8):
    images = batches[0][0]
    expected, found = model(images), int8(images)
    assert found.keys() == expected.keys()
    noise = (expected["logits"] - found["logits"]).square().sum() / expected["logits"].square().sum()
    assert noise < 1e-3


def test_every_layer_is_accounted_for(int8):
    assert [(layer.name, layer.precision) for layer in int8.layers[:-1]] == [
        ("stem", "int8"), ("conv", "int8"), ("gate", "int8"), ("head", "int8"),
    ]  # fmt: skip
    softmax = int8.layers[-1]
    assert (softmax.precision, "softmax" in softmax.reason) == ("float32", True)


def test_a_file_runs_as_the_simulation_does(int8, batches, tmp_path):
    path = int8.save(tmp_path / "small.onnx")
    runtime = rq.load(path, runtime="onnxruntime")
    assert list(runtime.inputs) == ["image"]
    assert runtime.outputs == ("logits", "map")
    images = batches[0][0]
    logits, _ = runtime(images.numpy())
    np.testing.assert_allclose(logits, int8(images)["logits"].detach().numpy(), atol=1e-2)
    assert not [finding for finding in rq.check(path, "onnxruntime") if finding.is_refused]


def test_a_proof_has_a_row_for_each_output_and_runtime(model, int8, batches, tmp_path):
    proof = rq.prove(model, int8, batches, runtimes=["onnxruntime"])
    rows = [(row.runtime, row.output) for row in proof.rows]
    assert rows == [
        ("pytorch", None), ("pytorch", "logits"), ("pytorch", "map"), ("onnxruntime", "logits"), ("onnxruntime", "map"),
    ]  # fmt: skip
    assert proof.rows[1].top1 is not None
    assert proof.rows[2].top1 is None
    assert proof.rows[3].parity == 100.0
    assert "| int8 | onnxruntime | logits |" in str(proof)
    assert proof.save(tmp_path / "proof.json").is_file()
    page = proof.to_html(tmp_path / "proof.html")
    assert (tmp_path / "proof.html").read_text() == page
    assert page.count("data:image/png;base64,") == len(proof.record.disagreements) == 8


def test_a_metric_is_asked_of_every_network(model, int8, batches):
    def mean_logit(network):
        return network(batches[0][0])["logits"].mean().item()

    proof = rq.prove(model, int8, batches, runtimes=["onnxruntime"], evaluate=mean_logit)
    float_row, simulated = proof.rows[0], proof.rows[1]
    assert float_row.metric == pytest.approx(mean_logit(model))
    assert simulated.metric_drop == pytest.approx(float_row.metric - mean_logit(int8), abs=1e-6)


def test_a_search_keeps_to_the_default_method_where_it_is_good_enough(model, batches):
    found = rq.search(model, batches, max_drop=50, held_back=batches)
    assert found.outcome.met
    assert len(found.outcome.attempts) == 1
    assert found(batches[0][0])["logits"].shape == (8, 4)


def test_an_analysis_names_every_place(model, batches):
    sensitivity = rq.analyze(model, batches, target="tensorrt")
    names = [layer.name for layer in sensitivity.layers]
    assert {"stem", "conv", "gate", "head"} <= set(names)
    assert sensitivity.images == 16


def test_inputs_by_name(model):
    batches = [{"image": torch.randn(4, 3, 16, 16)}]
    assert rq.quantize(model, batches)(image=batches[0]["image"])["logits"].shape == (4, 4)


def test_batches_that_can_be_read_once_are_kept(model, batches):
    assert rq.quantize(model, iter(batches)).layers


@pytest.mark.parametrize(
    ("verb", "changed", "words"),
    [
        (rq.quantize, {"batches": []}, "no calibration images"),
        (rq.quantize, {"batches": torch.zeros(2, 3, 8, 8)}, "batches is a Tensor; give an iterable"),
        (rq.quantize, {"target": "tensort"}, "unknown target 'tensort'"),
        (rq.quantize, {"keep_float": ["stam"]}, "did you mean 'stem'"),
        (rq.search, {}, "give a metric as evaluate, or images as held_back"),
        (rq.search, {"max_drop": -1}, "max_drop -1"),
        (rq.search, {"evaluate": lambda _: float("nan")}, "the metric returned nan; it has to return a finite number"),
        (rq.search, {"evaluate": lambda _: 10**5000}, "the metric returned a number too large for a float"),
        (rq.search, {"evaluate": lambda _: None}, "the metric returned None; it has to return one number"),
        (rq.search, {"evaluate": lambda network: network.boxes}, "the metric failed with AttributeError"),
    ],
)
def test_bad_input(model, batches, verb, changed, words):
    with pytest.raises(InputError, match=words):
        verb(model, **{"batches": batches, **changed})


@pytest.mark.parametrize("verb", [rq.quantize, rq.search, rq.analyze, rq.prepare_qat])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda network: network.half(), r"is float16; INT8 is made from float32: give model\.float\(\)"),
        (lambda network: network.bfloat16(), "is bfloat16"),
        (lambda network: network.double(), "is float64"),
        (lambda network: network.to("meta"), "has no values"),
    ],
)
def test_networks_that_are_not_float32(model, batches, verb, change, words):
    with pytest.raises(InputError, match=words):
        verb(change(copy.deepcopy(model)), batches)


def test_a_file_that_is_not_there():
    with pytest.raises(InputError, match=r"gone\.onnx does not exist"):
        rq.load("gone.onnx")


def test_another_suffix_is_refused(int8, tmp_path):
    with pytest.raises(InputError, match=r"\.engine was given; files for target onnxruntime end in \.onnx or \.tflite"):
        int8.save(tmp_path / "model.engine")


def test_importing_it_imports_nothing_heavy():
    code = (
        "import sys, repquant; "
        "print(sorted({'torch', 'onnx', 'numpy', 'onnxruntime', 'openvino'} & sys.modules.keys())); "
        "assert {'quantize', 'prove'} <= set(dir(repquant))"
    )
    answer = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert answer.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["quantize", "reparameterize"])
def test_examples_in_docstrings(name):
    module = sys.modules[getattr(rq, name).__module__]
    failed, tried = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert tried
    assert not failed
