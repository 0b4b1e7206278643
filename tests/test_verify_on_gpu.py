"""The script for a machine with a GPU, against the stand-in for TensorRT."""

import contextlib
import io
import runpy
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fake_tensorrt import FakeTensorRT
from repquant.cli.main import main
from repquant.runtimes import tensorrt as tensorrt_runtime
from repquant.runtimes.device_memory import TorchMemory

ROOT = Path(__file__).parent.parent


@pytest.fixture
def script(monkeypatch):
    """The script's names; what it would start as processes of its own runs in this one."""
    names = runpy.run_path(str(ROOT / "scripts" / "verify_on_gpu.py"))

    def run(*arguments):
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            assert main(list(arguments[2:])) == 0  # behind -m repquant
        return output.getvalue()

    names["main"].__globals__["run"] = run
    monkeypatch.setitem(sys.modules, "tensorrt", FakeTensorRT().module())
    monkeypatch.setattr(tensorrt_runtime, "open_memory", lambda: TorchMemory("cpu"))
    return names


@pytest.fixture
def data(tmp_path):
    """Ten classes, two training images and one validation image each."""
    generator = np.random.default_rng(0)
    for split, name, index in [*product(["train"], range(10), range(2)), *product(["val"], range(10), [0])]:
        path = tmp_path / "data" / split / str(name) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (32, 32, 3), np.uint8)).save(path)
    return tmp_path / "data"


@pytest.mark.slow
def test_the_page_holds_every_way_with_its_parity(script, data, tmp_path, monkeypatch):
    options = ["--arch", "RepVGG-tiny", "--num-classes", "10", "--image-size", "32", "--crop-ratio", "1.0"]
    options += ["--calibration-images", "16", "--rounding", "nearest", "--weight-bits", "7"]
    output = tmp_path / "tensorrt.md"
    arguments = [str(data), "builtin", "--runs", str(tmp_path / "runs"), "--output", str(output), *options]
    monkeypatch.setattr(sys, "argv", ["verify", *arguments])
    assert script["main"]() == 0  # parity is as it has to be
    page = output.read_text()
    for way in script["WAYS"]:
        assert f"## {way}" in page
    assert page.count("| mse | tensorrt |") == 3
    assert page.count("layers of the engine: 1 FP16, 1 FP32, 1 INT8, 1 reformat") == 3
    assert "## Latency" in page
    assert "trtexec --onnx=" in page


@pytest.mark.parametrize("arguments", [(), ("data",)])
def test_the_shell_script_explains_itself(arguments):
    done = subprocess.run(
        ["bash", ROOT / "scripts" / "verify_on_gpu.sh", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "scripts/verify_on_gpu.sh DATA WEIGHTS" in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("arguments", [("builtin", "builtin"), ("cuda",)])
def test_the_shell_script_names_what_is_missing(arguments):
    command = ["bash", ROOT / "scripts" / "verify_on_gpu.sh", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "nvidia-smi finds no GPU" in done.stderr
