from dataclasses import asdict

import numpy as np
import pytest

from repquant.evaluate.predictions import OutputDifference, Predictions
from repquant.evaluate.stream import Evaluation
from repquant.report.rows import measured_row


def evaluation(labels: np.ndarray | None) -> Evaluation:
    """Four images, six classes; the quantized model loses the first image, its runtime differs on the last."""
    rows = np.array([0, 1, 2, 3])
    logits = {name: np.zeros((4, 6), np.float32) for name in ("float", "sim", "ort")}
    for name, classes in {"float": [0, 1, 2, 3], "sim": [5, 1, 2, 3], "ort": [5, 1, 2, 4]}.items():
        logits[name][rows, classes] = 12.7
    return Evaluation(
        predictions={name: Predictions.of(values, labels) for name, values in logits.items()},
        differences={
            (name, reference): OutputDifference.between(logits[reference], logits[name])
            for name, reference in [("sim", "float"), ("ort", "float"), ("ort", "sim")]
        },
        images=4,
        seconds={"float": 2.0, "sim": 4.0, "ort": 0.5},
    )


def test_row_of_a_runtime():
    row = measured_row(
        evaluation(np.array([0, 1, 2, 0])),
        "ort",
        runtime="onnxruntime",
        runtime_version="1.32.0",
        calibrator="mse",
        float_name="float",
        simulation_name="sim",
        model="runs/mse.onnx",
        file_bytes=5,
    )
    assert (row.runtime, row.runtime_version, row.calibrator) == ("onnxruntime", "1.32.0", "mse")
    assert (row.top1, row.top5, row.images) == (50.0, 100.0, 4)
    assert row.top1_ci95[0] < 50 < row.top1_ci95[1]
    assert row.drop == 25.0
    assert row.drop_ci95[0] < 25 < row.drop_ci95[1]
    assert row.agreement == 50.0
    assert row.kl > 1
    # Two of four images have one of their peaks elsewhere: signal 4 peaks, noise 4 peaks.
    assert row.sqnr_db == pytest.approx(0.0)
    assert row.parity == 75.0
    assert row.max_logit_steps == pytest.approx(127)
    assert (row.seconds, row.images_per_second) == (0.5, 8.0)
    assert (row.model, row.file_bytes) == ("runs/mse.onnx", 5)


def test_row_without_labels_still_has_what_needs_none():
    row = measured_row(
        evaluation(None), "ort", runtime="onnxruntime", runtime_version="1", float_name="float", simulation_name="sim"
    )
    assert (row.top1, row.top1_ci95, row.top5, row.drop, row.drop_ci95) == (None,) * 5
    assert (row.agreement, row.parity) == (50.0, 75.0)
    assert row.kl is not None


def test_float_row_is_compared_with_nothing():
    row = measured_row(evaluation(np.array([0, 1, 2, 0])), "float", runtime="pytorch", runtime_version="2.13.0")
    assert row.top1 == 75.0
    missing = {name for name, value in asdict(row).items() if value is None}
    assert missing == {
        *("calibrator", "drop", "drop_ci95", "agreement", "kl", "sqnr_db"),
        *("parity", "max_logit_steps", "logit_steps", "file_bytes", "model"),
        *("output", "metric", "metric_drop"),
        *("latency_ms", "latency_ratio", "latency_ratio_ci95"),
    }


def test_equal_logits_have_no_finite_sqnr():
    same = evaluation(None)
    logits = np.ones((4, 6), np.float32)
    equal = Evaluation(
        predictions=same.predictions,
        differences={("sim", "float"): OutputDifference.between(logits, logits)},
        images=4,
        seconds=same.seconds,
    )
    row = measured_row(equal, "sim", runtime="pytorch", runtime_version="1", float_name="float")
    assert row.sqnr_db is None
    assert (row.agreement, row.kl) == (100.0, 0.0)
