import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from repquant.cli.main import build_parser, main
from repquant.models.checkpoints import load_model
from repquant.train.checkpoint import checkpoint_path

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
        "checkpoint-0001.pth",
        "checkpoint-0002.pth",
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
    assert "epoch 2/2: loss " in record["notes"][1]


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
    newest = checkpoint_path(run, 2)
    newest.write_bytes(newest.read_bytes()[:-50])
    (run / "model.safetensors").unlink()
    assert train(photographs, run, "--custom-l2", "--resume") == 0
    errors = capsys.readouterr().err
    assert "checkpoint-0002.pth is damaged" in errors
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
    ],
)
def test_bad_input_leaves_no_folder(photographs, tmp_path, capsys, change, message):
    assert train(photographs, tmp_path / "run", *change) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(photographs, tmp_path, capsys):
    assert train(photographs, tmp_path / "run", "--device", "cuda") == 2
    assert "PyTorch finds no GPU here; pass --device cpu" in capsys.readouterr().err


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_read_by_the_command_line(recipe):
    parsed = build_parser().parse_args(["train", "--config", str(recipe), "--data", "images", "--output", "run"]).train
    for name, value in yaml.safe_load(recipe.read_text()).items():
        expected = "images" if name == "data" else value
        assert parsed[name] == (tuple(expected) if isinstance(expected, list) else expected)


def test_there_are_recipes():
    assert "builtin" in [path.stem for path in RECIPES]
