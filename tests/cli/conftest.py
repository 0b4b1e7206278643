"""A small checkpoint and a folder of small images, as a user would have them."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from repquant.cli.main import main
from repquant.models.checkpoints import save_model
from repquant.models.network import build
from repquant.runtimes.cpu import int8_support


def noise(index, size=(40, 36), brightness=0):
    pixels = np.random.default_rng(index).integers(0, 156, (*reversed(size), 3)) + brightness
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """A network as small as this is slower with more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    model = build("RepVGG-tiny", 2).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2.0)
            module.weight.data.uniform_(0.5, 1.5)
    path = tmp_path_factory.mktemp("weights") / "tiny.pth"
    save_model(model, path)
    return path


@pytest.fixture(scope="session")
def photographs(tmp_path_factory):
    """Two classes, 12 training and 8 validation images each."""
    root = tmp_path_factory.mktemp("photographs")
    for split, count in (("train", 12), ("val", 8)):
        for label, name in enumerate(("bright", "dark")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                noise(index + 100 * label, brightness=100 * (1 - label)).save(folder / f"{index:02d}.png")
    return root


@pytest.fixture
def repquant(capsys):
    """Run the command line in this process: (exit status, stdout, stderr)."""

    def run(*arguments):
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as error:
            status = error.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def headline():
    return lambda stdout: json.loads(stdout.strip().splitlines()[-1])


@pytest.fixture(scope="session")
def small_options():
    """What a small checkpoint and small images ask for, after --weights and --data."""
    return ("--arch", "RepVGG-tiny", "--num-classes", "2", "--image-size", "32", "--crop-ratio", "1.0")


@pytest.fixture(scope="session")
def ptq_run(weights, photographs, small_options, tmp_path_factory):
    """The call of the contract, on small input, in a process of its own: (output folder, headline, process)."""
    output = tmp_path_factory.mktemp("ptq") / "run"
    command = [
        sys.executable, "-m", "repquant", "ptq", "--weights", weights, "--data", photographs, *small_options,
        "--calibration-images", "16", "--calibrator", "all", "--target", "tensorrt",
        "--runtimes", "pytorch,onnxruntime,openvino", "--output", output,
        "--weight-bits", "8" if int8_support().safe else "7",
    ]  # fmt: skip
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return output, json.loads(done.stdout.strip().splitlines()[-1]), done
