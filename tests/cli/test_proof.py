"""The sentences that a proof ends with."""

from dataclasses import replace

import pytest

from repquant.cli.recording import chance_notes, choice
from repquant.report.record import Record
from repquant.report.rows import Row


def row(calibrator, runtime, kl, drop=None, **others):
    interval = None if drop is None else (drop - 0.1, drop + 0.1)
    return Row(
        runtime=runtime, runtime_version="1", images=100, seconds=1.0, images_per_second=100.0, calibrator=calibrator,
        top1=None if drop is None else 80 - drop, drop=drop, drop_ci95=interval, agreement=99.0, kl=kl,
        model=f"run/{calibrator}.onnx", **others,
    )  # fmt: skip


RECORD = Record(
    command="ptq",
    output="run",
    config={"target": "openvino"},
    inputs={},
    environment={},
    float_row=replace(row(None, "pytorch", None), top1=80.0),
    results=(
        row("max", "pytorch", 0.001, 0.5),
        row("max", "openvino", 0.03, 0.5),
        row("mse", "openvino", 0.02, 0.05),
        row("mse", "onnxruntime", 0.5, 0.5),
    ),
)


def test_the_file_nearest_to_float_in_the_targets_runtime():
    assert choice(RECORD) == (
        "take run/mse.onnx: in openvino the same class as float on 99.00 % of the images, top-1 79.95 %, 0.05 points "
        "below float (which is within noise)"
    )
    assert "(which is within noise)" not in choice(replace(RECORD, results=RECORD.results[:2]))


def test_where_the_target_did_not_run_and_where_there_are_no_labels_or_files():
    other = replace(RECORD, config={"target": "tensorrt"}, results=RECORD.results[:1] + RECORD.results[3:])
    assert choice(other).startswith("take run/mse.onnx: in onnxruntime")
    simulated = replace(RECORD, results=(row("max", "pytorch", 0.1), row("mse", "pytorch", 0.05)))
    assert choice(simulated) == "take run/mse.onnx: in the simulation the same class as float on 99.00 % of the images"
    nothing = replace(simulated, results=tuple(replace(each, model=None) for each in simulated.results))
    assert choice(nothing) == "nothing was exported; mse is nearest to float in the simulation"


@pytest.mark.parametrize(
    ("top1", "classes", "warned"),
    [(14.2, 10, True), (19.1, 10, False), (0.1, 1000, True), (54.0, 2, True), (56.0, 2, False)],
)
def test_a_float_model_that_is_hardly_better_than_chance(top1, classes, warned):
    record = replace(RECORD, float_row=replace(RECORD.float_row, top1=top1))
    notes = chance_notes(record, tuple(map(str, range(classes))))
    assert len(notes) == warned
    if warned:
        assert (
            f"warning: top-1 in float is {top1:.2f} %, and chance {100 / classes:.2f} %: are --image-size" in notes[0]
        )


def test_without_labels_there_is_no_chance():
    assert chance_notes(replace(RECORD, float_row=None), None) == ()
    assert chance_notes(RECORD, None) == ()
