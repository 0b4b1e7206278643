import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser

from repquant.cli import training
from repquant.cli.main import build_parser, main
from repquant.models.checkpoints import load_model
from repquant.models.zoo import ARCHITECTURES, PUBLISHED, SEARCH_SUFFIX
from repquant.quant.qat_recipe import QatRecipe
from repquant.train.checkpoint import Checkpoint, Newest, checkpoint_path
from repquant.train.distributed import Ranks
from repquant.train.recipe import Recipe
from repquant.train.step import Stepper

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


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
        (("--device", "tpu"), "device 'tpu' was given; allowed are cpu and cuda"),
        (("--epochs", "0"), "--epochs 0 was given; allowed is at least 1"),
        (("--keep", "0"), "--keep 0 was given; allowed is at least 1"),
        (("--checkpoint-steps", "-1"), "--checkpoint-steps -1 was given"),
        (("--accumulation-steps", "3"), "--batch-size 8 was given, of all processes together; with 1 processes and 3"),
        (("--held-back-images", "24"), "--held-back-images 24 was given, and there are 24 training images"),
        (("--training-images", "25"), "--training-images 25 was given, and there are 24 images to train on"),
        (("--init-weights", "nowhere.pth"), "weights nowhere.pth does not exist"),
        (("--precision", "float16"), "--precision float16 needs --device cuda"),
        (("--size-schedule", "3:24"), "--size-schedule '3:24' was given"),
    ],
)
def test_bad_input_leaves_no_folder(photographs, tmp_path, capsys, change, message):
    assert train(photographs, tmp_path / "run", *change) == 2
    assert message in capsys.readouterr().err
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
    assert "stopped as asked after step 4 of 6; the same command with --resume goes on" in captured.err
    stop_after(0)
    assert train(photographs, tmp_path / "run", "--custom-l2", "--resume") == 0
    assert "going on after epoch 1 of 2, step 4 of 6" in capsys.readouterr().err
    expected = load_model(run / "model.safetensors", "RepVGG-tiny", 2).state_dict()
    resumed = load_model(tmp_path / "run" / "model.safetensors", "RepVGG-tiny", 2).state_dict()
    assert all(torch.equal(resumed[name], tensor) for name, tensor in expected.items())


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


def test_a_full_disk_at_the_end_says_what_to_do(photographs, tmp_path, capsys, monkeypatch):
    def save_model(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("repquant.models.checkpoints.save_model", save_model)
    assert train(photographs, tmp_path / "run") == 2
    assert "No space left on device. The training is complete in the last checkpoint" in capsys.readouterr().err
    monkeypatch.undo()
    assert train(photographs, tmp_path / "run", "--resume") == 0


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


def test_another_number_of_processes_is_said(capsys):
    checkpoint = Checkpoint(
        step=3,
        steps_per_epoch=4,
        world_size=2,
        model={},
        average=None,
        optimizer={},
        scaler={},
        sums={},
        history=[],
    )
    plan = Recipe(arch="RepVGG-tiny", sync_bn=False)
    training._tell_resumed(Newest(checkpoint, ()), plan, Ranks())
    said = capsys.readouterr().err
    assert "the run was on 2 processes and is on 1 now: each step has the same images" in said
    assert "batch statistics are of parts of another size" in said
    training._tell_resumed(Newest(checkpoint, ()), plan, Ranks(world_size=2))
    assert "processes" not in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_under_torchrun(photographs, tmp_path):
    settings = "--arch RepVGG-tiny --num-classes 2 --image-size 24 --crop-ratio 1 --batch-size 8 --epochs 2"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    output = tmp_path / "run"
    command = [*torchrun, "-m", "repquant", "train", *settings.split(), "--data", photographs, "--output", output]

    def call(*more: str) -> subprocess.CompletedProcess[str]:
        words = [str(word) for word in (*command, *more)]
        return subprocess.run(
            words, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )

    done = call()
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    first = json.loads(line)
    assert first["epochs"] == 2
    record = json.loads((output / "result.json").read_text())
    assert record["float_row"]["images"] == 16
    assert "trained by 2 processes" in record["notes"]
    again = call("--resume")
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("going on after epoch 2 of 2") == 1
    assert json.loads(again.stdout)["top1"] == first["top1"]
    refused = call()
    assert refused.returncode != 0
    assert "is not empty; pass --resume" in refused.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(photographs, tmp_path, capsys):
    assert train(photographs, tmp_path / "run", "--device", "cuda") == 2
    assert "PyTorch finds no GPU here; pass --device cpu" in capsys.readouterr().err


def test_training_on_some_of_the_images(photographs, tmp_path):
    more = ("--training-images", "8", "--held-back-images", "6", "--epochs", "1")
    assert train(photographs, tmp_path / "run", *more) == 0
    assert (tmp_path / "run" / "checkpoint-00000001.pth").is_file()
    assert json.loads((tmp_path / "run" / "result.json").read_text())["float_row"]["images"] == 6


@pytest.fixture(scope="module")
def parser() -> ArgumentParser:
    return build_parser()


def read_recipe(parser: ArgumentParser, path: Path) -> dict[str, Any]:
    """The options of a recipe as the verb has them that it is for."""
    verb = "qat" if path.stem.startswith("qat-") else "train"
    call = [verb, "--config", str(path), "--data", "images", "--output", "run"]
    parsed = parser.parse_args([*call, "--weights", "float.pth"] if verb == "qat" else call)
    return vars(parsed[verb])


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_read_by_the_command_line(parser, recipe):
    parsed = read_recipe(parser, recipe)
    for name, value in yaml.safe_load(recipe.read_text()).items():
        expected = "images" if name == "data" else value
        assert parsed[name] == (tuple(expected) if isinstance(expected, list) else expected)
    kind = QatRecipe if recipe.stem.startswith("qat-") else Recipe
    settings = kind(**{field.name: parsed[field.name] for field in fields(kind)})
    assert settings.arch in ARCHITECTURES


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_the_head_comment_of_a_recipe_says_what_it_is(recipe):
    head, colon, _ = recipe.read_text().partition("\narch:")
    assert colon
    assert all(line.startswith("#") for line in head.splitlines())
    assert f"--config recipes/{recipe.name}" in head
    for what in ("Cost: ", "Result: "):
        assert what in head


def test_the_table_of_recipes_names_every_network_of_the_zoo_with_what_is_published():
    lines = (RECIPES[0].parent / "README.md").read_text().splitlines()
    rows = {cells[1].strip(): cells for cells in (line.split("|") for line in lines if line.startswith("| "))}
    named = {path.stem for path in RECIPES}
    for name in ARCHITECTURES:
        if not name.endswith(SEARCH_SUFFIX):
            assert re.findall(r"([\w-]+)\.yaml", rows[name][2])[0] in named
    for name, figures in PUBLISHED.items():
        assert float(re.split("[; ]", rows[name][4].strip())[0]) == figures.top1_percent


def test_there_are_recipes():
    assert {"builtin", "imagenet-120", "qat-imagenet"} <= {path.stem for path in RECIPES}
