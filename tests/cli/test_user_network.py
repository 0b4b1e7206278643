"""A network of the user's own, on the command line."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from repquant.errors import InputError
from repquant.export.files import export_file
from repquant.models.user_network import make_network
from repquant.reparameterize import reparameterize

CODE = """
import torch
from torch import nn


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 1)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(torch.relu(self.wide(x) + self.narrow(x)).mean((2, 3)))


def network():
    torch.manual_seed(0)
    return Branches()


def nothing():
    return 3


def broken():
    raise RuntimeError("no weights here")
"""


@pytest.fixture
def code(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(CODE)
    return path


def test_ptq_of_a_network_of_the_users(repquant, photographs, code, tmp_path):
    status, out, err = repquant(
        "ptq", "--model", f"{code}:network", "--num-classes", 2, "--data", photographs, "--image-size", 32,
        "--crop-ratio", 1.0, "--calibration-images", 8, "--calibrator", "mse", "--target", "onnxruntime", "--runtimes",
        "onnxruntime", "--output", tmp_path / "run",
    )  # fmt: skip
    assert status == 0, err
    (row,) = json.loads(out.strip().splitlines()[-1])["results"]
    assert row["parity"] == 100.0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["inputs"] == {}


def test_its_branches_are_one_convolution_and_its_weights_come_from_a_checkpoint(code, tmp_path):
    network = make_network(f"{code}:network", "")
    changed = {name: tensor + 1 for name, tensor in network.state_dict().items()}
    torch.save(changed, tmp_path / "changed.pth")
    assert torch.equal(make_network(f"{code}:network", str(tmp_path / "changed.pth")).head.bias, changed["head.bias"])


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("mine.py", "package.module:function or file.py:function"),
        ("{code}:missing", "has no function missing"),
        ("{code}:nothing", r"nothing\(\) returned a int"),
        ("{code}:broken", r"broken\(\) failed with RuntimeError: no weights here"),
        ("gone.py:network", "there is no file gone.py"),
        ("no_such_package.at_all:network", "can't be imported: ModuleNotFoundError"),
    ],
)
def test_bad_input(code, model, words):
    with pytest.raises(InputError, match=words):
        make_network(model.format(code=code), "")


def test_a_checkpoint_of_another_network(code, tmp_path):
    torch.save({"other": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"other\.pth is of another network"):
        make_network(f"{code}:network", str(Path(tmp_path / "other.pth")))


@pytest.fixture
def file(code, tmp_path):
    graph = reparameterize(make_network(f"{code}:network", ""), torch.zeros(2, 3, 32, 32))
    export_file(graph, tmp_path / "mine.onnx")
    return tmp_path / "mine.onnx"


def test_ptq_of_an_onnx_file(repquant, photographs, file, tmp_path):
    options = {
        "model": str(file), "num_classes": 2, "data": str(photographs), "image_size": 32, "crop_ratio": 1.0,
        "calibration_images": 8, "calibrator": "mse", "target": "onnxruntime", "runtimes": "onnxruntime",
        "output": str(tmp_path / "run"),
    }  # fmt: skip
    configuration = tmp_path / "run.yaml"
    configuration.write_text(json.dumps(options))  # a file is no code: a configuration may name it
    status, out, err = repquant("ptq", "--config", configuration)
    assert status == 0, err
    (row,) = json.loads(out.strip().splitlines()[-1])["results"]
    assert row["parity"] == 100.0
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    assert record["config"]["model"] == str(file)
    assert record["inputs"] == {"model": hashlib.sha256(file.read_bytes()).hexdigest()}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--weights", "x.pth"), "holds its own; leave it out"),
        (("--image-size", 33, "--batch-size", 4), "is it a classifier of images of this size?"),
    ],
)
def test_an_onnx_file_that_does_not_fit(repquant, photographs, file, tmp_path, more, words):
    status, _, err = repquant(
        "ptq", "--model", file, "--data", photographs, "--num-classes", 2, "--image-size", 32,
        "--target", "onnxruntime", "--output", tmp_path / "run", *more,
    )  # fmt: skip
    assert status == 2
    assert words in " ".join(err.split())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [((), "which network?"), (("--model", "a:b", "--arch", "RepVGG-A0"), "give one of them")],
)
def test_one_network_has_to_be_named(repquant, photographs, tmp_path, arguments, words):
    status, _, err = repquant(
        "ptq", *arguments, "--data", photographs, "--num-classes", 2, "--image-size", 32, "--target", "onnxruntime",
        "--output", tmp_path / "run",
    )  # fmt: skip
    assert status == 2
    assert words in err
    assert not (tmp_path / "run").exists()
