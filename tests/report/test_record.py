import json
from dataclasses import replace
from math import inf
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repquant.errors import InputError
from repquant.report.record import Record, headline, read_record, write_record


def strict(text: str) -> object:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_reads_back_what_it_wrote(record, tmp_path):
    write_record(record, tmp_path / "result.json")
    assert read_record(tmp_path / "result.json") == record
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_record_of_a_run_without_float_row_or_calibration(record):
    bare = replace(record, float_row=None, calibration=None, results=(), skipped={}, output=None)
    assert Record.from_json(bare.to_json()) == bare


numbers = st.floats() | st.none()


@given(numbers, numbers, st.tuples(st.floats(), st.floats()))
def test_any_number_gives_strict_json(loss, kl, interval):
    record = Record(
        command="ptq",
        output=None,
        config={"path": Path("a") / "b", "limits": (loss, [kl]), "nested": {"x": interval}},
        inputs={},
        environment={},
    )
    config = strict(record.to_json())["config"]
    assert config["path"] == str(Path("a") / "b")
    assert config["limits"][0] == (None if loss in (inf, -inf, None) or loss != loss else loss)


def test_schema_of_the_file(record):
    data = strict(record.to_json())
    assert data["schema_version"] == 1
    assert data["config"]["arch"] == "RepVGG-A0"
    assert data["calibration"] == {"images": 512, "seed": 0, "sha256": "cd" * 32, "seconds": 3.5, "examples": []}
    assert data["results"][1]["drop_ci95"] == [-0.27, 0.68]
    assert data["results"][0]["parity"] is None


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"can't read .*result\.json: No such file .*; give the result\.json of a run"):
        read_record(tmp_path / "result.json")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda text: text[:100], "Unterminated string|Expecting"),
        (
            lambda text: text.replace('"schema_version": 1', '"schema_version": 2'),
            "schema version 2; this program reads",
        ),
        (lambda _: "[1]", "schema version None"),
        (lambda text: text.replace('"top5"', '"top50"'), r"fields do not fit: float_row\.top50 is unknown"),
        (
            lambda text: text.replace('"top1": 85.55414012738854', '"top1": "85"'),
            r'fields do not fit: float_row\.top1 is "85", not a finite number',
        ),
        (lambda text: text.replace("-0.27,", ""), r"fields do not fit: results\[0\]\.drop_ci95 has 1 items, not 2"),
        (lambda text: text.replace("-0.27", "NaN"), "NaN is not JSON"),
        (lambda text: text.replace("-0.27", "1e999"), r"fields do not fit: results\[0\]\.drop_ci95\[0\] is Infinity"),
        (
            lambda text: text.replace('"images": 512', '"images": true'),
            r"fields do not fit: calibration\.images is true, not an integer",
        ),
        (lambda text: text.replace('"command": "ptq",', ""), "fields do not fit: command is missing"),
        (lambda text: "[" * 10**6 + text, "maximum recursion depth"),
        (lambda text: text.replace('"results"', '"rows"'), "fields do not fit: rows is unknown"),
    ],
)
def test_file_that_is_no_record(record, tmp_path, change, reason):
    path = tmp_path / "result.json"
    path.write_text(change(record.to_json()))
    with pytest.raises(InputError, match=rf"result\.json is not a record of a run: ({reason})"):
        read_record(path)


def test_failed_write_keeps_the_old_record(record, tmp_path):
    path = tmp_path / "result.json"
    write_record(record, path)
    with pytest.raises(TypeError, match="set is not JSON serializable"):
        write_record(replace(record, config={"unwritable": {1, 2}}), path)
    assert read_record(path) == record
    assert [item.name for item in tmp_path.iterdir()] == ["result.json"]


def test_headline_has_the_contract_keys(record):
    figures = headline(record)
    assert figures["float_top1"] == 85.5541
    assert figures["output"] == "runs/a0"
    assert figures["skipped"] == 1
    simulated, deployed = figures["results"]
    contract = "calibrator runtime top1 drop drop_ci95 agreement kl sqnr_db parity seconds file_bytes model"
    assert set(contract.split()) <= deployed.keys()
    assert deployed["calibrator"] == "entropy"
    assert deployed["runtime"] == "onnxruntime"
    assert deployed["drop"] == 0.203822
    assert deployed["drop_ci95"] == [-0.27, 0.68]
    assert deployed["kl"] == 0.00934568
    assert deployed["file_bytes"] == 7_240_000
    assert simulated["parity"] is None
    assert strict(json.dumps(figures, allow_nan=False)) == figures


def test_headline_without_labels(record):
    unlabeled = {"top1": None, "top1_ci95": None, "top5": None, "drop": None, "drop_ci95": None}
    record = replace(
        record,
        float_row=replace(record.float_row, **unlabeled),
        results=tuple(replace(row, **unlabeled) for row in record.results),
    )
    figures = headline(record)
    assert figures["float_top1"] is None
    assert figures["results"][1]["drop_ci95"] is None
    assert figures["results"][1]["agreement"] == 96.9
    assert headline(replace(record, float_row=None))["float_top1"] is None
