from dataclasses import replace

import pytest
from test_page import analysis_of

from conftest import make_row
from repquant.report.run import Run
from repquant.report.verdict import served_row, signed, verdict

MINUS = "\N{MINUS SIGN}"


def run_with(record, *rows, target="onnxruntime", **changes):
    return Run(name="a", record=replace(record, results=rows, config={"target": target}), **changes)


def test_signs():
    assert [signed(value) for value in (0.004, -0.004, 0.005001, -1.0)] == ["0.00", "0.00", "+0.01", f"{MINUS}1.00"]


def test_the_headline_is_about_the_runtime_that_serves_and_the_closest_model(record):
    rows = [
        make_row(runtime="pytorch", kl=1e-3),
        make_row(runtime="openvino", kl=1e-3),
        make_row(runtime="onnxruntime", kl=9e-3),
        make_row(runtime="onnxruntime", kl=8e-3),
    ]
    assert served_row(run_with(record, *rows).record) is rows[3]
    assert served_row(run_with(record, *rows, target="tensorrt").record) is rows[1]
    assert served_row(run_with(record, rows[0]).record) is rows[0]
    assert served_row(run_with(record, replace(rows[0], calibrator=None)).record) is None


@pytest.mark.parametrize(
    ("changes", "within", "mood", "lost", "step"),
    [
        (
            {},
            True,
            "good",
            "INT8 (entropy, in onnxruntime) loses 0.20 points of top-1 (85.76 to 85.55 %): within noise, as the 95 % "
            f"interval of the drop on 3,925 images runs from {MINUS}0.27 to +0.68.",
            "Nothing: take runs/a0/entropy.onnx.",
        ),
        (
            {"parity": 98.5},
            True,
            "good",
            "within noise",
            "In onnxruntime 1.50 % of the images get another class than was",
        ),
        ({"drop_ci95": (0.1, 0.7)}, False, "bad", "more than noise", "Find out where it is lost: repquant analyze"),
        ({"drop_ci95": (-3.0, 4.0), "images": 60}, True, "open", "within noise", "60 can't rule out a loss of 4.0"),
        ({"drop": -1.0, "drop_ci95": (-1.5, -0.5)}, False, "good", "gains 1.00 points", "Nothing: take"),
        ({"drop": 0.001}, True, "good", "keeps top-1", "Nothing: take"),
        (
            {"drop": None, "drop_ci95": None, "top1": None},
            None,
            "open",
            "names the class that float names on 96.90 % of 3,925 images; without labels",
            "Find out",
        ),
    ],
)
def test_what_was_lost_and_what_to_do(record, changes, within, mood, lost, step):
    judged = verdict(run_with(record, make_row(**changes)))
    assert (judged.within_noise, judged.mood) == (within, mood)
    assert lost in judged.lost
    assert step in judged.next_step
    assert judged.where == "Not analyzed."


def test_where_names_what_the_analysis_did_less_than_the_run(record):
    worse = make_row(drop_ci95=(0.1, 0.7))
    run = run_with(record, worse, analysis=analysis_of(record))
    run = replace(run, record=replace(run.record, config=run.record.config | {"rounding": "feedback"}))
    judged = verdict(run)
    assert judged.where == (
        "As it was analyzed, with equalization none, rounding nearest: 90 % of the KL to float comes from the weights; "
        "stages.0 costs most: in float it would take 80 % away."
    )
    assert judged.next_step.startswith("Scale the channels.")


def test_an_analysis_alone(record):
    judged = verdict(Run(name="a", analysis=analysis_of(record)))
    assert judged.lost == "The network as it was analyzed has a KL to float of 10.00 thousandths of a nat."
    assert judged.next_step == "Scale the channels."
