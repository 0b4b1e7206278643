"""The verbs beside `train`, each in two processes under torchrun, against one process."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from repquant.runtimes.cpu import int8_support

pytestmark = pytest.mark.slow


def run(processes, *words):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", "repquant", *map(str, words)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def headline(done):
    """The one line that all processes together have printed."""
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    return json.loads(line)


@pytest.fixture
def common(weights, photographs, small_options):
    return ("--weights", weights, "--data", photographs, *small_options)


def test_evaluate_counts_every_image_once(common, weights, tmp_path):
    model = tmp_path / "float.onnx"
    export = ("export", "--arch", "RepVGG-tiny", "--num-classes", 2, "--weights", weights, "--image-size", 32)
    assert run(1, *export, "--output", model).returncode == 0
    call = ("evaluate", *common, "--batch-size", 3, "--runtimes", "pytorch,onnxruntime", "--model", model)
    alone, together = headline(run(1, *call)), headline(run(2, *call))
    for one, two in zip(alone["results"], together["results"], strict=True):
        for key in ("runtime", "images", "top1", "top1_ci95", "top5"):
            assert one[key] == two[key]
    assert together["results"][0]["images"] == 16


def test_insert_bn_merges_the_statistics(common, tmp_path):
    found = {}
    for processes in (1, 2):
        path = tmp_path / f"{processes}.safetensors"
        found[processes] = headline(run(processes, "insert-bn", *common, "--output", path)) | load_file(path)
    assert found[1]["images"] == found[2]["images"] == 24
    for name, tensor in found[1].items():
        if isinstance(tensor, torch.Tensor):
            torch.testing.assert_close(found[2][name], tensor, rtol=1e-6, atol=1e-6)


def test_a_moving_average_needs_one_process(common, tmp_path):
    done = run(2, "insert-bn", *common, "--averaging", "ema", "--output", tmp_path / "bn.safetensors")
    assert done.returncode != 0
    assert "pass --averaging exact, or start one process" in done.stderr


def test_qat_calibrates_once_and_trains_together(common, tmp_path):
    bits = ("--weight-bits", 8 if int8_support().safe else 7)
    small = ("--batch-size", 8, "--epochs", 1, "--calibration-images", 16, "--rounding-images", 8, *bits)
    call = ("qat", *common, *small, "--target", "tensorrt", "--runtimes", "pytorch")
    found = {}
    for processes in (1, 2):
        done = run(processes, *call, "--output", tmp_path / str(processes))
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("calibrating first") == 1
        (found[processes],) = json.loads(done.stdout.splitlines()[-1])["results"]
    assert found[2]["top1"] == pytest.approx(found[1]["top1"], abs=100 / 16)
    one, two = (load_file(tmp_path / str(processes) / "model.safetensors") for processes in (1, 2))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4)
