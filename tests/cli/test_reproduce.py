import dataclasses
import json

import pytest

from repquant.cli import qat
from repquant.errors import InputError

FEW = ("--training-images", 16, "--training-batch", 8, "--epochs", 1, "--calibration-images", 16)


@pytest.fixture
def reproduce(repquant, weights, photographs, small_options, tmp_path):
    call = ("reproduce", "--weights", weights, "--data", photographs, *small_options, *FEW, "--target", "tensorrt")
    return lambda *more: repquant(*call, "--output", tmp_path / "table", *more)


def test_the_rows_that_train_get_the_images_the_batch_and_the_seed(reproduce, tmp_path, monkeypatch):
    seen = []

    def run(options):
        seen.append(options)
        raise InputError("seen enough")

    monkeypatch.setattr(qat, "run", run)
    assert reproduce("--rows", "plain-tuned")[0] == 2
    assert reproduce("--rows", "equivalent-kernel", "--seeds", "3")[0] == 2
    tuned, equivalent = seen
    for options in seen:
        assert (options.training_images, options.batch_size, options.calibration_images) == (16, 8, 16)
    assert (tuned.method, tuned.epochs, tuned.learning_rate, tuned.distillation) == ("plain", 1, 1e-4, 0.0)
    assert (equivalent.method, equivalent.epochs, equivalent.seed) == ("equivalent-kernel", 3, 3)
    assert equivalent.output == str(tmp_path / "table" / "equivalent-kernel-seed3")


def test_a_row_that_diverges_is_said_and_not_begun_again(reproduce, tmp_path, monkeypatch, headline):
    from repquant.train.loop import DivergedError

    begun = []

    def run(options):
        begun.append(options.output)
        (tmp_path / "table" / "plain-seed0").mkdir(parents=True)
        raise DivergedError("the loss is nan at step 3")

    monkeypatch.setattr(qat, "run", run)
    for _ in range(2):
        status, stdout, stderr = reproduce("--rows", "ptq-default,plain")
        assert status == 0, stderr
        assert [row["name"] for row in headline(stdout)["rows"]] == ["float", "ptq-default"]
        assert "plain: diverged: the loss is nan at step 3" in stderr
    assert len(begun) == 1
    status, _, stderr = reproduce("--rows", "plain", "--training-batch", 4)
    assert status == 2
    assert "batch_size was 8 and is 4 now" in stderr
    assert "plain: diverged: the loss is nan at step 3" in (tmp_path / "table" / "table.md").read_text()


@pytest.mark.parametrize("seeds", ["", "a", "-1", str(2**64), "1," + "9" * 4000])
def test_seeds_that_are_none_leave_nothing(reproduce, tmp_path, seeds):
    status, _, stderr = reproduce("--seeds", seeds)
    assert status == 2
    assert "allowed are integers from 0 to 9,223,372,036,854,775,807, with commas" in stderr
    assert not (tmp_path / "table").exists()


@pytest.mark.parametrize("content", ["", "[]", '{"error": 1, "config": {}}', '{"error": "", "config": 5}', "[" * 10**5])
def test_what_a_divergence_left_may_be_damaged(reproduce, tmp_path, content):
    (tmp_path / "table" / "plain-seed0").mkdir(parents=True)
    (tmp_path / "table" / "plain-seed0" / "diverged.json").write_text(content)
    status, _, stderr = reproduce("--rows", "plain")
    assert status == 2
    assert "diverged.json is damaged; remove" in stderr


def test_the_identity_is_set_apart_where_a_row_can(reproduce, monkeypatch):
    seen = []

    def run(options):
        seen.append(options.identity)
        raise InputError("seen enough")

    monkeypatch.setattr(qat, "run", run)
    for row in ("inserted-bn", "plain", "equivalent-kernel", "plain-distilled"):
        reproduce("--identity", "residual", "--rows", row)
    assert seen == ["fused", "fused", "residual", "residual"]


def test_a_table_that_was_stopped_says_how_it_goes_on(reproduce, monkeypatch):
    from repquant.train.stopping import StoppedError

    def run(options):
        raise StoppedError("the same run with --resume goes on")

    monkeypatch.setattr(qat, "run", run)
    status, _, stderr = reproduce("--rows", "plain")
    assert status == 75
    assert "the same command goes on" in stderr
    assert "--resume" not in stderr


def test_torchrun_is_refused(reproduce, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    status, _, stderr = reproduce()
    assert status == 2
    assert "start it without torchrun" in stderr


def test_both_kernels_are_trained_at_equal_cost(reproduce, monkeypatch):
    seen = []

    def run(options):
        seen.append(dataclasses.asdict(options))
        raise InputError("seen enough")

    monkeypatch.setattr(qat, "run", run)
    reproduce("--rows", "equivalent-kernel")
    reproduce("--rows", "plain-distilled")
    branches, plain = seen
    assert {key for key in branches if branches[key] != plain[key]} == {"method", "output"}


@pytest.mark.slow
def test_a_row_is_made_once(reproduce, tmp_path, headline):
    status, stdout, stderr = reproduce("--rows", "plain")
    assert status == 0, stderr
    assert headline(stdout)["rows"]
    folder = tmp_path / "table" / "plain-seed0"
    assert json.loads((folder / "result.json").read_text())["config"]["training_images"] == 16
    assert (folder / "checkpoint-00000002.pth").is_file()  # 16 images, 8 a step, one epoch
    status, _, stderr = reproduce("--rows", "plain")
    assert status == 0, stderr
    assert "plain: complete in" in stderr


def test_a_complete_row_of_other_settings_is_refused(reproduce, tmp_path, headline):
    status, stdout, stderr = reproduce("--rows", "ptq-default")
    assert status == 0, stderr
    assert [row["name"] for row in headline(stdout)["rows"]] == ["float", "ptq-default"]
    status, _, stderr = reproduce("--rows", "ptq-default")
    assert status == 0, stderr
    assert "ptq-default: complete in" in stderr
    status, _, stderr = reproduce("--rows", "ptq-default", "--calibration-images", 12, "--weight-bits", 7)
    assert status == 2
    assert "calibration_images was 16 and is 12 now" in stderr
    assert "weight_bits was 8 and is 7 now" in stderr
