"""The one command for a result: the trail, the choice, and what it does without labels."""

import shutil

import pytest

from repquant.cli.quantize import surprises
from repquant.methods import ptq
from repquant.report.record import read_record
from repquant.report.rows import Row


@pytest.fixture
def quantize(repquant, weights, photographs, small_options, tmp_path):
    def run(*arguments, data=photographs):
        return repquant(
            "quantize", "--weights", weights, "--data", data, *small_options, "--calibration-images", 8,
            "--held-back-images", 8, "--target", "onnxruntime", "--output", tmp_path / "run", *arguments,
        )  # fmt: skip

    return run


def test_a_limit_that_is_met_at_once(quantize, headline, tmp_path):
    status, out, err = quantize("--max-drop", 50)
    assert status == 0, err
    result = headline(out)
    assert result["met"]
    assert result["keep_float"] == []
    record = read_record(tmp_path / "run" / "result.json")
    assert [attempt.chosen for attempt in record.trail] == [True]
    assert record.trail[0].images == 8
    assert record.notes[0] == result["reason"]
    assert {row.runtime for row in record.results} == {"pytorch", "onnxruntime", "openvino"}
    assert (tmp_path / "run" / "mse.onnx").is_file()


def test_fewer_images_than_the_defaults_are_shared_out(repquant, weights, photographs, small_options, tmp_path):
    status, _, err = repquant(
        "quantize", "--weights", weights, "--data", photographs, *small_options, "--target", "onnxruntime",
        "--max-drop", 50, "--runtimes", "pytorch", "--output", tmp_path / "run",
    )  # fmt: skip
    assert status == 0, err
    assert "there are 24 images to calibrate on: 12 do, and 12 others judge, in place of 512 and 512" in err
    record = read_record(tmp_path / "run" / "result.json")
    assert (record.calibration.images, record.trail[0].images) == (12, 12)
    assert f"take {tmp_path / 'run' / 'mse.onnx'}" in err


def test_a_limit_that_nothing_meets_ends_with_the_best_and_says_so(quantize, headline, tmp_path, monkeypatch):
    monkeypatch.setattr("repquant.methods.judges.expected_drop", lambda reference, _: reference[:, 0].abs() + 1)
    monkeypatch.setattr("repquant.methods.search.STEPS", 20)
    reconstruct, learned = ptq.reconstruct, []
    monkeypatch.setattr(ptq, "reconstruct", lambda *given, **named: learned.append(1) or reconstruct(*given, **named))
    status, out, err = quantize("--max-drop", 0, "--weight-bits", 4, "--runtimes", "pytorch")
    assert status == 0, err
    result = headline(out)
    assert not result["met"]
    assert "nothing tried reached" in result["reason"]
    trail = read_record(tmp_path / "run" / "result.json").trail
    assert sum(attempt.chosen for attempt in trail) == 1
    assert [len(attempt.keep_float) for attempt in trail[-5:]] == [0, 1, 2, 4, 8]
    assert "learned rounding" in trail[-5].name
    assert len(learned) == 1, "layers that stay in float after all need nothing learned again"
    assert result["chosen"] == next(attempt.name for attempt in trail if attempt.chosen)


def test_learned_rounding_that_there_is_no_time_for_is_left_out_and_layers_are_kept_in_float(
    quantize, tmp_path, monkeypatch
):
    monkeypatch.setattr("repquant.methods.judges.expected_drop", lambda reference, _: reference[:, 0].abs() + 1)
    monkeypatch.setattr("repquant.methods.attempts.seconds_a_step", lambda *_: 1e6)
    status, _, err = quantize("--max-drop", 0, "--runtimes", "pytorch")
    assert status == 0, err
    record = read_record(tmp_path / "run" / "result.json")
    assert "learned rounding was left out: it would take at least 2000000" in record.notes[1]
    assert [len(attempt.keep_float) for attempt in record.trail[-5:]] == [0, 1, 2, 4, 8]
    assert not any("learned" in attempt.name for attempt in record.trail)


def test_without_time_one_attempt_is_made_and_nothing_more(quantize, headline, tmp_path, monkeypatch):
    monkeypatch.setattr("repquant.methods.judges.expected_drop", lambda reference, _: reference[:, 0].abs() + 1)
    status, out, err = quantize("--max-drop", 0, "--minutes", 1e-6, "--runtimes", "pytorch")
    assert status == 0, err
    assert len(read_record(tmp_path / "run" / "result.json").trail) == 1
    assert "time was up" in headline(out)["reason"]


def test_a_plain_folder_of_images_is_enough(quantize, photographs, headline, tmp_path):
    plain = tmp_path / "plain"
    plain.mkdir()
    for folder in (photographs / "train").iterdir():
        for image in folder.iterdir():
            shutil.copy(image, plain / f"{folder.name}-{image.name}")
    status, out, err = quantize("--max-drop", 100, "--runtimes", "pytorch", data=plain)
    assert status == 0, err
    (row,) = headline(out)["results"]
    assert row["top1"] is None
    assert row["agreement"] is not None
    assert "held-back calibration images" in err


def test_a_drop_above_the_limit_on_labelled_images_is_said():
    def row(drop):
        return Row(runtime="pytorch", runtime_version="", images=1, seconds=0.0, images_per_second=None, drop=drop)

    assert surprises(0.1, [row(0.1), row(None), row(-0.2)]) == ()
    (sentence,) = surprises(0.1, [row(0.05), row(0.25)])
    assert "above 0.1 points: 0.25 in pytorch" in sentence


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--max-drop", -1), "--max-drop -1"),
        (("--minutes", 0), "--minutes 0"),
        (("--held-back-images", 17), "allowed are 1 to 16"),
        (("--held-back-images", 0), "--held-back-images 0 was given; allowed is from 1 to"),
        (("--max-drop", "1e400"), "--max-drop inf was given; allowed is from 0 to 100"),
        (("--calibration-images", 24), "leaves none of 24 images"),
        (("--rounding-images", 0), "--rounding-images 0"),
        (("--activation-bits", 6), "--runtimes pytorch"),
    ],
)
def test_bad_input(quantize, tmp_path, arguments, words):
    status, _, err = quantize(*arguments)
    assert status == 2
    assert words in err
    assert list(tmp_path.iterdir()) == []


def test_labels_of_other_classes_are_refused_without_a_validation_split_too(quantize, photographs, tmp_path):
    data = tmp_path / "data"
    (data / "train" / "third").mkdir(parents=True)
    for folder in (photographs / "train").iterdir():
        shutil.copytree(folder, data / "train" / folder.name)
    shutil.copy(next((photographs / "train" / "dark").iterdir()), data / "train" / "third")
    status, _, err = quantize(data=data)
    assert status == 2
    assert "3 classes in train, the model has 2" in err
