"""A record as a run on labeled images leaves it."""

import pytest

from repquant.report.record import CalibrationRecord, Record
from repquant.report.rows import Row


def make_row(**changes) -> Row:
    values = {
        "runtime": "onnxruntime",
        "runtime_version": "1.32.0",
        "images": 3925,
        "seconds": 12.345678,
        "images_per_second": 317.9,
        "calibrator": "entropy",
        "top1": 85.55414012738854,
        "top1_ci95": (84.4, 86.6),
        "top5": 99.0,
        "drop": 0.2038216560509554,
        "drop_ci95": (-0.27, 0.68),
        "agreement": 96.9,
        "kl": 0.0093456789,
        "sqnr_db": 24.04,
        "parity": 99.95,
        "max_logit_steps": 0.6,
        "logit_steps": (3000, 900, 20, 4, 0, 1, 0, 0, 0),
        "file_bytes": 7_240_000,
        "model": "runs/a0/entropy.onnx",
    }
    return Row(**(values | changes))


NOT_COMPARED = dict.fromkeys(
    ("drop", "drop_ci95", "agreement", "kl", "sqnr_db", "parity", "max_logit_steps", "logit_steps")
)


@pytest.fixture
def record() -> Record:
    return Record(
        command="ptq",
        output="runs/a0",
        config={"arch": "RepVGG-A0", "image_size": 160, "keep_float": []},
        inputs={"weights": "ab" * 32},
        environment={
            "repquant": "0.1.0",
            "python": "3.11.7",
            "machine": "x86_64",
            "cpu": "AMD EPYC",
            "cpu_int8_flags": ["avx512_vnni"],
            "cores": 2,
            "packages": {"torch": "2.13.0", "onnxruntime": "1.32.0", "openvino": None},
        },
        calibration=CalibrationRecord(images=512, seed=0, sha256="cd" * 32, seconds=3.5),
        notes=("This CPU has VNNI.",),
        skipped={"val/a/1.jpg": "truncated"},
        float_row=make_row(runtime="pytorch", calibrator=None, model=None, file_bytes=None, **NOT_COMPARED),
        results=(make_row(runtime="pytorch", parity=None, max_logit_steps=None, logit_steps=None), make_row()),
    )
