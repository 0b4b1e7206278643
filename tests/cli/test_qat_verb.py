import json
import os

import pytest
import torch

from repquant.cli.main import main
from repquant.locks import sole_user
from repquant.models.checkpoints import load_model, save_model
from repquant.models.network import build
from repquant.models.reparam import reparameterize
from repquant.runtimes.cpu import int8_support

QUICK = ("--batch-size", "8", "--epochs", "2", "--calibration-images", "16", "--rounding-images", "8")
BITS = ("--weight-bits", "8" if int8_support().safe else "7")
HEADLINE = {"calibrator", "runtime", "top1", "drop", "drop_ci95", "agreement", "kl", "sqnr_db", "parity", "model"}


@pytest.fixture
def qat(repquant, weights, photographs, small_options):
    def run(output, *more, target="tensorrt"):
        options = ("--weights", weights, "--data", photographs, *small_options, *QUICK, *BITS, "--target", target)
        return repquant("qat", *options, "--output", output, *more)

    return run


@pytest.fixture(scope="module")
def finished(weights, photographs, small_options, tmp_path_factory):
    """A run that ended, measured in the simulation alone; tests may resume it, and change nothing in it."""
    output = tmp_path_factory.mktemp("finished") / "run"
    options = ("--weights", weights, "--data", photographs, *small_options, *QUICK, *BITS, "--target", "tensorrt")
    assert main([str(part) for part in ("qat", *options, "--output", output, "--runtimes", "pytorch")]) == 0
    return output


@pytest.mark.parametrize("method", ["equivalent-kernel", "plain", "inserted-bn"])
def test_the_call_of_the_contract(qat, tmp_path, headline, method):
    output = tmp_path / "run"
    status, stdout, stderr = qat(output, "--method", method)
    assert status == 0, stderr
    found = headline(stdout)
    assert [row["runtime"] for row in found["results"]] == ["pytorch", "onnxruntime", "openvino"]
    for row in found["results"]:
        assert row.keys() >= HEADLINE
        assert row["calibrator"] == method
        assert row["model"] == f"{output}/{method}.onnx"
        assert row["agreement"] >= 85
    assert all(row["parity"] == 100 for row in found["results"][1:])
    assert "calibrating first, on 16 images" in stderr
    assert "epoch 2/2: loss " in stderr
    record = json.loads((output / "result.json").read_text())
    assert record["command"] == "qat"
    assert record["config"]["method"] == method
    assert load_model(output / "model.safetensors", "RepVGG-tiny", 2).form == "deploy"


def test_an_interrupted_run_ends_with_the_same_integers(qat, finished, tmp_path, headline, monkeypatch):
    from repquant.train.loop import Trainer

    stopped = tmp_path / "stopped"
    take_step = Trainer._take_step

    def stop_in_the_second_epoch(trainer, *arguments):
        if trainer.step == 4:
            raise KeyboardInterrupt
        return take_step(trainer, *arguments)

    monkeypatch.setattr(Trainer, "_take_step", stop_in_the_second_epoch)
    assert qat(stopped, "--runtimes", "pytorch")[0] == 1
    monkeypatch.undo()
    status, stdout, stderr = qat(stopped, "--runtimes", "pytorch", "--resume")
    assert status == 0, stderr
    assert "going on after epoch 1 of 2" in stderr
    assert "calibrating first" not in stderr
    name = "equivalent-kernel.onnx"
    assert (stopped / name).read_bytes() == (finished / name).read_bytes()
    assert headline(stdout)["results"][0]["model"] == f"{stopped}/{name}"


def test_a_changed_scheme_is_refused_with_the_difference(qat, finished):
    for change, message in (
        (("--weight-bits", "4"), f"weight_bits was {BITS[1]} and is 4 now"),
        (("--method", "plain"), "method was equivalent-kernel and is plain now"),
        (("--calibrator", "max"), "calibrator was default and is max now"),
    ):
        status, _, stderr = qat(finished, "--resume", *change)
        assert status == 2
        assert message in stderr
    status, _, stderr = qat(finished)
    assert status == 2
    assert "is not empty; pass --resume" in stderr


def test_a_run_is_not_continued_in_the_scheme_of_another_cpu(qat, tmp_path, monkeypatch):
    from repquant.runtimes import cpu

    assert qat(tmp_path / "run", "--runtimes", "pytorch", target="onnxruntime")[0] == 0
    there = not int8_support().safe
    monkeypatch.setattr(cpu, "int8_support", lambda: cpu.Int8Support(there, "another machine"))
    status, _, stderr = qat(tmp_path / "run", "--runtimes", "pytorch", "--resume", target="onnxruntime")
    assert status == 2
    assert "vnni was" in stderr


@pytest.fixture
def deploy_weights(weights, tmp_path):
    path = tmp_path / "deploy.safetensors"
    save_model(reparameterize(load_model(weights, "RepVGG-tiny", 2)), path)
    return path


def test_a_deploy_checkpoint(qat, deploy_weights, tmp_path):
    status, _, stderr = qat(tmp_path / "run", "--weights", deploy_weights)
    assert status == 2
    assert "its branches are fused and can't be had back" in stderr
    assert "--method plain" in stderr
    assert not (tmp_path / "run").exists()
    assert qat(tmp_path / "run", "--weights", deploy_weights, "--method", "plain", "--runtimes", "pytorch")[0] == 0


def test_bits_that_no_runtime_here_executes(qat, tmp_path):
    status, _, stderr = qat(tmp_path / "run", "--activation-bits", "4")
    assert status == 2
    assert "activations of 4 bits can only be simulated" in stderr
    status, _, stderr = qat(tmp_path / "run", "--weight-bits", "1")
    assert status == 2
    assert "--weight-bits 1 was given; allowed is from 2 to 8" in stderr
    assert not (tmp_path / "run").exists()


def test_four_bits_are_simulated(qat, tmp_path, headline):
    status, stdout, stderr = qat(
        tmp_path / "run", "--weight-bits", "4", "--activation-bits", "4", "--runtimes", "pytorch"
    )
    assert status == 0, stderr
    assert headline(stdout)["results"][0]["model"] is None


def test_a_teacher_with_other_classes(qat, tmp_path):
    torch.manual_seed(0)
    save_model(build("RepVGG-tiny", 3), tmp_path / "teacher.pth")
    status, _, stderr = qat(tmp_path / "run", "--teacher", tmp_path / "teacher.pth")
    assert status == 2
    assert "--teacher can't be used, which needs the classes of the network, 2" in stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--method", "magic"), "--method magic was given; allowed is one of equivalent-kernel, plain, inserted-bn"),
        (("--calibrator", "median"), "median"),
        (("--calibrator", "all"), "--calibrator all was given; allowed is one of"),
        (("--keep-float", "stem,hed"), "head"),
        (("--vnni", "perhaps"), "--vnni perhaps was given; allowed is one of auto, yes, no"),
        (("--weight-ranges", "entropy"), "--weight-ranges entropy was given"),
        (("--rounding", "learned"), "--rounding learned was given; allowed is one of feedback, nearest"),
        (("--calibration-images", "0", "--rounding-images", "0"), "--calibration-images 0 was given"),
        (("--method", "inserted-bn", "--inserted-bn", "none.safetensors"), "pass --equalization none and"),
        (("--refresh-steps", "5"), "--refresh-steps is for --statistics refreshed, and they are frozen"),
        (("--freeze-epochs", "0"), "--freeze-epochs is for --method inserted-bn, and it is equivalent-kernel"),
        (("--inserted-bn", "bn.safetensors"), "--inserted-bn is for --method inserted-bn"),
    ],
)
def test_bad_input(qat, tmp_path, change, message):
    status, stdout, stderr = qat(tmp_path / "run", *change)
    assert status == 2
    assert message in stderr
    assert stdout == ""
    assert not (tmp_path / "run").exists()


def test_insert_bn_and_training_with_it(repquant, qat, weights, photographs, small_options, tmp_path, headline):
    path = tmp_path / "bn.safetensors"
    common = ("--data", photographs, *small_options, "--output", path)
    status, stdout, stderr = repquant("insert-bn", "--weights", weights, *common)
    assert status == 0, stderr
    found = headline(stdout)
    assert found["max_relative_difference"] < 1e-5
    assert found["images"] == 24
    assert "the statistics come from 24 images" in stderr
    as_is = ("--method", "inserted-bn", "--inserted-bn", path, "--runtimes", "pytorch")
    status, _, stderr = qat(tmp_path / "run", *as_is)
    assert status == 2
    assert "pass --equalization none and --rounding nearest" in stderr
    status, _, stderr = qat(tmp_path / "run", *as_is, "--equalization", "none", "--rounding", "nearest")
    assert status == 0, stderr

    torch.manual_seed(0)
    save_model(build("RepVGG-half", 2), tmp_path / "half.pth")
    other = ("--arch", "RepVGG-half", "--weights", tmp_path / "half.pth")
    status, _, stderr = qat(tmp_path / "other", *as_is, "--equalization", "none", "--rounding", "nearest", *other)
    assert status == 2
    assert "are of RepVGG-tiny with 2 classes, the model is RepVGG-half with 2" in stderr
    status, _, stderr = repquant("insert-bn", "--weights", weights, *common)
    assert status == 2
    assert "pass --overwrite" in stderr


def test_a_run_that_failed_does_not_block_its_folder(qat, tmp_path):
    """What can be seen at once is refused before calibration, and a failure leaves a folder that is new."""
    status, _, stderr = qat(tmp_path / "run", "--randaugment", "foo")
    assert status == 2
    assert "RandAugment 'foo' is not understood" in stderr
    assert "calibrating first" not in stderr
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("epochs: 7")  # of a run that failed later
    assert qat(tmp_path / "run", "--runtimes", "pytorch")[0] == 0


def test_two_runs_do_not_share_a_folder(qat, tmp_path):
    with sole_user(tmp_path / "run"):
        status, _, stderr = qat(tmp_path / "run", "--resume")
    assert status == 2
    assert f"run is in use by process {os.getpid()} on" in stderr
