"""`--average-bits` in `ptq` and `quantize`: the bits of layers in the record, on the screen and in the files."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from repquant.report.page import html
from repquant.report.record import read_record
from repquant.report.run import read_run


@pytest.fixture
def mixed(repquant, weights, photographs, small_options, tmp_path):
    """Run a verb on 8 calibration images: (status, stdout, stderr); the output is tmp_path / "run"."""

    def run(verb, *arguments):
        return repquant(
            verb, "--weights", weights, "--data", photographs, *small_options, "--calibration-images", 8,
            "--target", "onnxruntime", "--vnni", "yes", "--runtimes", "pytorch", "--output", tmp_path / "run",
            *arguments,
        )  # fmt: skip

    return run


def largest_integers(path):
    constants = (numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer)
    return sorted(np.abs(each).max() for each in constants if each.dtype == np.int8 and each.ndim > 1)


def test_ptq_chooses_once_for_all_calibrators(mixed, tmp_path):
    status, _, err = mixed("ptq", "--average-bits", 5, "--calibrator", "max,mse")
    assert status == 0, err
    record = read_record(tmp_path / "run" / "result.json")
    assert set(record.weight_bits.values()) == {4, 8}
    assert "bits of each layer: " in record.notes[0]
    (note,) = (note for note in record.notes if note.startswith("weights have "))
    mean = float(note.split()[2])
    assert 4 < mean <= 5
    assert note in err
    for name in ("max", "mse"):
        sizes = largest_integers(tmp_path / "run" / f"{name}.onnx")
        assert sum(size <= 7 for size in sizes) == list(record.weight_bits.values()).count(4)
    page = html([read_run(tmp_path / "run")])
    assert "Bits of the weights, layer by layer" in page
    assert note in page


def test_quantize_holds_to_it(mixed, tmp_path):
    status, _, err = mixed("quantize", "--average-bits", 4.5, "--held-back-images", 8, "--max-drop", 100)
    assert status == 0, err
    record = read_record(tmp_path / "run" / "result.json")
    assert set(record.weight_bits.values()) == {4, 8}
    assert any(note.startswith("weights have 4.") for note in record.notes)


def test_without_it_all_layers_are_as_asked(mixed, tmp_path):
    status, _, err = mixed("ptq", "--weight-bits", 6, "--calibrator", "max", "--rounding", "nearest")
    assert status == 0, err
    record = read_record(tmp_path / "run" / "result.json")
    assert record.weight_bits == {}
    assert not any(note.startswith("weights have ") for note in record.notes)


@pytest.mark.parametrize("verb", ["ptq", "quantize"])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--average-bits", 3), "--average-bits 3.0 was given; allowed is 0, or from 4 to 8"),
        (("--average-bits", 9), "--average-bits 9.0 was given; allowed is 0, or from 4 to 8"),
        (("--average-bits", "nan"), "--average-bits nan was given"),
        (
            ("--average-bits", 4.5, "--weight-bits", 4),
            "--average-bits 4.5 and --weight-bits 4 were given, and no layer gets more than 4 bits; raise --weight-",
        ),
        (("--average-bits", 7, "--weight-bits", 6), "allowed is from 4 to 6, as each layer gets 4 or 6 bits"),
        (("--average-bits", 7.5, "--vnni", "no"), "from 4 to 7, as each layer gets 4 or 7 bits (weights are in 7 bits"),
    ],
)
def test_bad_input(mixed, tmp_path, verb, arguments, words):
    status, _, err = mixed(verb, *arguments)
    assert status == 2
    assert words in err
    assert list(tmp_path.iterdir()) == []
