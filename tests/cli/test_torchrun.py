"""The verbs in two processes under torchrun, most of them against one process."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from repquant.runtimes.cpu import int8_support
from repquant.train.checkpoint import newest_checkpoint

pytestmark = pytest.mark.slow

ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}


def command(processes, *words):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [sys.executable, *(launcher if processes > 1 else []), "-m", "repquant", *map(str, words)]


def run(processes, *words):
    return subprocess.run(command(processes, *words), capture_output=True, text=True, check=False, env=ONE_THREAD)


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


@pytest.fixture
def training(photographs, tmp_path):
    """The words of a training in `tmp_path / "run"`."""
    small = ("--arch", "RepVGG-tiny", "--num-classes", 2, "--image-size", 24, "--crop-ratio", 1, "--batch-size", 8)
    return ("train", *small, "--data", photographs, "--output", tmp_path / "run")


def test_train_in_two_processes(training, tmp_path):
    training = (*training, "--epochs", 2)
    first = headline(run(2, *training))
    assert first["epochs"] == 2
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    assert record["float_row"]["images"] == 16
    assert "trained by 2 processes" in record["notes"]
    again = run(2, *training, "--resume")
    assert headline(again)["top1"] == first["top1"]
    assert again.stderr.count("going on after epoch 2 of 2") == 1
    refused = run(2, *training)
    assert refused.returncode != 0
    assert "is not empty; pass --resume" in refused.stderr


def test_torchrun_that_is_told_to_stop_leaves_a_checkpoint(training, tmp_path):
    """It signals the process groups of its ranks, and exits with 1 itself."""
    words = command(2, *training, "--epochs", 5000, "--checkpoint-steps", 1, "--workers", 2)
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=ONE_THREAD) as launcher:
        try:
            while launcher.poll() is None and not any((tmp_path / "run").glob("checkpoint-*.pth")):
                time.sleep(0.05)
            began = time.monotonic()
            launcher.send_signal(signal.SIGTERM)
            _, errors = launcher.communicate(timeout=100)
        finally:
            launcher.terminate()  # SIGKILL would leave its ranks behind
    assert time.monotonic() - began < 29, "torchrun had to kill its ranks"
    assert launcher.returncode == 1, errors
    steps = re.findall(r"stopped as asked after step (\d+) of 15000", errors)
    assert len(steps) == 2
    assert {newest_checkpoint(tmp_path / "run").checkpoint.step} == {int(step) for step in steps}
