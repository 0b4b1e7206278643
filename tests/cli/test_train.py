import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from repquant.cli.main import main
from repquant.models.checkpoints import load_model, save_model
from repquant.models.network import build
from repquant.train.checkpoint import Checkpoint, checkpoint_path
from repquant.train.step import Stepper


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """A network as small as this is slower with more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def train(photographs: Path, output: Path, *more: str) -> int:
    settings = "--arch RepVGG-tiny --num-classes 2 --image-size 24 --crop-ratio 1 --batch-size 8 --epochs 2"
    return main(["train", *settings.split(), "--data", str(photographs), "--output", str(output), *more])


@pytest.fixture(scope="module")
def run(photographs, tmp_path_factory) -> Path:
    """The folder of a finished run."""
    output = tmp_path_factory.mktemp("runs") / "first"
    assert train(photographs, output, "--custom-l2") == 0
    return output


def test_a_run_leaves_model_record_and_headline(photographs, tmp_path, capsys):
    output = tmp_path / "run"
    assert train(photographs, output) == 0
    captured = capsys.readouterr()
    headline = json.loads(captured.out.splitlines()[-1])
    assert headline.keys() == {"output", "model", "top1", "epochs", "images_per_second"}
    assert headline["output"] == str(output)
    assert headline["epochs"] == 2
    assert headline["images_per_second"] > 0
    assert 0 <= headline["top1"] <= 100
    assert sorted(path.name for path in output.iterdir()) == [
        "best.pth",
        "checkpoint-00000003.pth",
        "checkpoint-00000006.pth",
        "model.safetensors",
        "recipe.yaml",
        "result.json",
    ]
    model = load_model(headline["model"], "RepVGG-tiny", 2)
    assert model.form == "training"
    record = json.loads((output / "result.json").read_text())
    assert record["float_row"]["top1"] == headline["top1"]
    assert record["config"]["epochs"] == 2
    assert "epoch 2/2: loss " in captured.err
    assert record["notes"][0] == "fresh weights, seed 0"
    assert "epoch 2/2: loss " in record["notes"][2]


def test_an_existing_run_is_refused_and_left_alone(photographs, run, capsys):
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    assert train(photographs, run, "--custom-l2") == 2
    assert "is not empty; pass --resume" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--custom-l2", "--arch", "RepVGG-A0"), "arch was RepVGG-tiny and is RepVGG-A0 now"),
        (("--custom-l2", "--epochs", "3"), "epochs was 2 and is 3 now"),
        ((), "custom_l2 was True and is False now"),
    ],
)
def test_resume_with_another_recipe_is_refused(photographs, run, capsys, change, message):
    assert train(photographs, run, "--resume", *change) == 2
    assert message in capsys.readouterr().err


def test_resume_after_a_damaged_checkpoint_ends_with_the_same_weights(photographs, run, capsys):
    expected = load_model(run / "model.safetensors", "RepVGG-tiny", 2).state_dict()
    newest = checkpoint_path(run, 6)
    newest.write_bytes(newest.read_bytes()[:-50])
    (run / "model.safetensors").unlink()
    assert train(photographs, run, "--custom-l2", "--resume") == 0
    errors = capsys.readouterr().err
    assert "checkpoint-00000006.pth is damaged" in errors
    assert "going on after epoch 1 of 2" in errors
    resumed = load_model(run / "model.safetensors", "RepVGG-tiny", 2).state_dict()
    assert all(torch.equal(resumed[name], tensor) for name, tensor in expected.items())


def test_a_finished_run_can_be_resumed(photographs, run, capsys):
    assert train(photographs, run, "--custom-l2", "--resume") == 0
    captured = capsys.readouterr()
    assert "going on after epoch 2 of 2" in captured.err
    assert json.loads(captured.out.splitlines()[-1])["epochs"] == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--batch-size", "25"), "a batch of 25 is larger than the 24 training images"),
        (("--num-classes", "1000"), "have 2 classes, the network 1000; pass --num-classes 2"),
        (("--arch", "RepVGG-A9"), "unknown architecture 'RepVGG-A9'"),
        (("--data", "nowhere"), "data folder nowhere does not exist"),
        (("--epochs", "0"), "--epochs 0 was given; allowed is from 1 to"),
        (("--keep", "0"), "--keep 0 was given; allowed is from 1 to"),
        (("--checkpoint-steps", "-1"), "--checkpoint-steps -1 was given"),
        (("--accumulation-steps", "3"), "--batch-size 8 was given, of all processes together; with 1 processes and 3"),
        (("--held-back-images", "24"), "--held-back-images 24 was given, and there are 24 training images"),
        (("--training-images", "25"), "--training-images 25 was given, and there are 24 images to train on"),
        (("--init-weights", "nowhere.pth"), "weights nowhere.pth does not exist"),
        (("--precision", "float16"), "--precision float16 needs --device cuda"),
        (("--size-schedule", "3:24"), "--size-schedule 3:24 was given"),
        (("--accumulation-steps", "8"), "batch statistics would be those of one image"),
        (("--arch", "QARepVGG-tiny", "--custom-l2"), "--custom-l2 is for the blocks of RepVGG, and QARepVGG-tiny has"),
        (("--freeze-stages", "6"), "--freeze-stages 6 was given; allowed is from 0 to 5 for RepVGG-tiny"),
    ],
)
def test_bad_input_leaves_no_folder(photographs, tmp_path, capsys, change, message):
    assert train(photographs, tmp_path / "run", *change) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_device_that_is_none(photographs, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        train(photographs, tmp_path / "run", "--device", "tpu")
    assert "--device tpu was given; allowed is one of cpu, cuda" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_missing_extra_leaves_no_folder(photographs, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert train(photographs, tmp_path / "run", "--tensorboard") == 2
    assert "--tensorboard needs TensorBoard; pip install 'repquant[train]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.fixture
def stop_after(monkeypatch):
    """Ask the process to stop in a step, as a scheduler does."""

    def stop(step: int) -> None:
        take = Stepper.take

        def take_and_ask(self, batches, number, *arguments):
            if number + 1 == step:
                signal.raise_signal(signal.SIGTERM)
            return take(self, batches, number, *arguments)

        monkeypatch.setattr(Stepper, "take", take_and_ask)

    return stop


def test_a_run_that_is_asked_to_stop_ends_with_75_and_goes_on_to_the_same_weights(
    photographs, run, tmp_path, capsys, stop_after, monkeypatch
):
    with monkeypatch.context():
        stop_after(4)
        assert train(photographs, tmp_path / "run", "--custom-l2") == 75
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "stopped as asked after step 4 of 6; the same run with --resume goes on" in captured.err
    stop_after(0)
    assert train(photographs, tmp_path / "run", "--custom-l2", "--resume") == 0
    assert "going on after epoch 1 of 2, step 4 of 6" in capsys.readouterr().err
    expected = load_model(run / "model.safetensors", "RepVGG-tiny", 2).state_dict()
    resumed = load_model(tmp_path / "run" / "model.safetensors", "RepVGG-tiny", 2).state_dict()
    assert all(torch.equal(resumed[name], tensor) for name, tensor in expected.items())


def the_model(run: Path) -> dict[str, torch.Tensor]:
    return load_model(run / "model.safetensors", "RepVGG-tiny", 2).state_dict()


@pytest.mark.parametrize("place", ["repquant.train.initial.initial_network", "repquant.models.checkpoints.save_model"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_before_or_after_the_steps_ends_with_75_too(
    photographs, run, tmp_path, capsys, monkeypatch, place, number
):
    with monkeypatch.context() as patch:
        patch.setattr(place, lambda *_: signal.raise_signal(number))
        assert train(photographs, tmp_path / "run", "--custom-l2") == 75
    assert "stopped as asked; the same run with --resume goes on" in capsys.readouterr().err
    assert train(photographs, tmp_path / "run", "--custom-l2", "--resume") == 0
    expected = the_model(run)
    assert all(torch.equal(expected[name], tensor) for name, tensor in the_model(tmp_path / "run").items())


def test_a_signal_to_all_processes_of_a_run_with_workers_ends_it_with_75(photographs, tmp_path):
    """As a scheduler sends it."""
    settings = "--arch RepVGG-tiny --num-classes 2 --image-size 24 --crop-ratio 1 --batch-size 8 --epochs 5000"
    command = [
        sys.executable,
        "-m",
        "repquant",
        "train",
        *settings.split(),
        "--workers",
        "2",
        "--checkpoint-steps",
        "1",
    ]
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [*command, "--data", str(photographs), "--output", str(folder)],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    try:
        while process.poll() is None and not any(folder.glob("checkpoint-*.pth")):
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 75, errors
    (step,) = re.findall(r"stopped as asked after step (\d+) of 15000", errors)
    assert Checkpoint.load(checkpoint_path(folder, int(step))).step == int(step)
    assert "Traceback" not in errors


def test_a_resumed_run_does_not_need_the_checkpoint_that_it_began_with(photographs, tmp_path, capsys, stop_after):
    start = tmp_path / "start.pth"
    save_model(build("RepVGG-tiny", 2), start)
    stop_after(4)
    assert train(photographs, tmp_path / "run", "--init-weights", str(start)) == 75
    assert f"weights of {start}" in capsys.readouterr().err
    start.unlink()
    stop_after(0)
    assert train(photographs, tmp_path / "run", "--init-weights", str(start), "--resume") == 0
    assert f"the run began with {start}" in capsys.readouterr().err


def test_a_damaged_checkpoint_without_another_goes_back_to_the_best(photographs, tmp_path, capsys, monkeypatch):
    accuracies = iter((50.0, 40.0, 40.0))
    monkeypatch.setattr("repquant.train.loop.top1", lambda *_: next(accuracies))
    assert train(photographs, tmp_path / "run", "--keep", "1") == 0
    newest = checkpoint_path(tmp_path / "run", 6)
    newest.write_bytes(newest.read_bytes()[:-50])
    capsys.readouterr()
    assert train(photographs, tmp_path / "run", "--keep", "1", "--resume") == 0
    errors = capsys.readouterr().err
    assert "checkpoint-00000006.pth is damaged" in errors
    assert "going on after epoch 1 of 2, step 3 of 6 (best.pth)" in errors


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of TensorBoard's own imports
def test_what_else_a_run_can_do(photographs, tmp_path, capsys):
    more = "--held-back-images 8 --ema-decay 0.5 --checkpoint-steps 1 --keep 3 --tensorboard --reference-batch 16"
    assert train(photographs, tmp_path / "run", *more.split()) == 0
    said = capsys.readouterr().err
    assert "the model is the average of the weights with decay 0.5" in said
    assert "accuracy is on 8 held-back training images" in said
    assert "2 epochs in" in said
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    assert record["float_row"]["images"] == 8
    checkpoints = sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*"))
    assert checkpoints == [f"checkpoint-{step:08d}.pth" for step in (2, 3, 4)]  # 16 images are left: 2 steps an epoch
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    average = torch.load(tmp_path / "run" / checkpoints[-1])["average"]
    saved = load_model(tmp_path / "run" / "model.safetensors", "RepVGG-tiny", 2)
    assert torch.equal(saved.head.weight, average["module.head.weight"])


def full_disk(monkeypatch, *names: str) -> None:
    """Let it be full when a file with one of these words in its name is made."""
    make = tempfile.mkstemp

    def mkstemp(prefix: str, **others: Any) -> tuple[int, str]:
        if any(name in prefix for name in names):
            raise OSError(28, "No space left on device")
        return make(prefix=prefix, **others)

    monkeypatch.setattr(tempfile, "mkstemp", mkstemp)


@pytest.mark.parametrize("file", ["model.safetensors", "result.json"])
def test_a_full_disk_at_the_end_says_what_to_do(photographs, tmp_path, capsys, monkeypatch, file):
    output = tmp_path / "run"
    full_disk(monkeypatch, file)
    assert train(photographs, output) == 2
    assert (
        f"can't write {output / file}: [Errno 28] No space left on device. The training is complete in the last "
        f"checkpoint ({checkpoint_path(output, 6)}, step 6 of 6): make room, and pass --resume to go on from there"
    ) in capsys.readouterr().err
    monkeypatch.undo()
    assert train(photographs, output, "--resume") == 0


def test_a_disk_that_was_full_for_the_last_checkpoint_too_says_from_where_it_goes_on(
    photographs, tmp_path, capsys, monkeypatch
):
    output = tmp_path / "run"
    full_disk(monkeypatch, checkpoint_path(output, 6).name, "model.safetensors")
    assert train(photographs, output) == 2
    errors = capsys.readouterr().err
    assert "the disk is full: no checkpoint of step 6" in errors
    assert (
        "The last checkpoint could not be written either, and steps have to be done again "
        f"({checkpoint_path(output, 3)}, step 3 of 6)"
    ) in errors


def test_unknown_keys_of_a_recipe_are_named_with_the_nearest_known_one(photographs, tmp_path, capsys):
    config = tmp_path / "recipe.yaml"
    config.write_text("lerning_rate: 0.1\n")
    with pytest.raises(SystemExit) as stopped:
        train(photographs, tmp_path / "run", "--config", str(config))
    assert stopped.value.code == 2
    assert "does not accept option 'lerning_rate'; did you mean learning_rate?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        train(photographs, tmp_path / "run", "--lerning-rate", "0.1")
    assert "unrecognized arguments: --lerning-rate 0.1; did you mean --learning-rate?" in capsys.readouterr().err
    config.write_text("zzz: 1\n")
    with pytest.raises(SystemExit):
        train(photographs, tmp_path / "run", "--config", str(config))
    error = capsys.readouterr().err
    assert "does not accept option 'zzz'" in error
    assert "did you mean" not in error


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(photographs, tmp_path, capsys):
    assert train(photographs, tmp_path / "run", "--device", "cuda") == 2
    assert "PyTorch finds no GPU here; pass --device cpu" in capsys.readouterr().err


def test_training_on_some_of_the_images(photographs, tmp_path):
    more = ("--training-images", "8", "--held-back-images", "6", "--epochs", "1")
    assert train(photographs, tmp_path / "run", *more) == 0
    assert (tmp_path / "run" / "checkpoint-00000001.pth").is_file()
    assert json.loads((tmp_path / "run" / "result.json").read_text())["float_row"]["images"] == 6


OWN = {
    "layers": "nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1), "
    "nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))",
    "a RepVGG": "build('RepVGG-tiny', 2)",  # its names are not those of official checkpoints
}


@pytest.mark.parametrize("network", OWN.values(), ids=OWN)
def test_a_network_of_the_users_is_trained_and_quantized(photographs, tmp_path, capsys, network):
    code = tmp_path / "own.py"
    code.write_text(
        f"from torch import nn\nfrom repquant.models.network import build\n\n\ndef network():\n    return {network}\n"
    )
    output = tmp_path / "run"
    images = ["--num-classes", "2", "--image-size", "24", "--crop-ratio", "1", "--data", str(photographs)]
    network = ["--model", f"{code}:network", *images]
    assert main(["train", *network, "--batch-size", "8", "--epochs", "1", "--output", str(output)]) == 0
    trained = json.loads(capsys.readouterr().out.splitlines()[-1])
    given = ["--weights", trained["model"], "--calibration-images", "8", "--target", "onnxruntime"]
    assert main(["ptq", *network, *given, "--runtimes", "pytorch", "--output", str(tmp_path / "int8")]) == 0
    quantized = json.loads((tmp_path / "int8" / "result.json").read_text())
    assert quantized["float_row"]["top1"] == trained["top1"]
