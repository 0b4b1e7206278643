"""The contract of the command line, on a small network and small images."""

import subprocess
import sys
import time

import pytest

from repquant.cli.main import VERBS
from repquant.report.record import read_record
from repquant.runtimes.cpu import int8_support

KEYS = {
    "calibrator", "runtime", "top1", "drop", "drop_ci95", "agreement", "kl", "sqnr_db", "parity", "seconds",
    "file_bytes", "model",
}  # fmt: skip


def test_headline_has_every_calibrator_in_every_runtime(ptq_run):
    output, headline, _ = ptq_run
    assert headline["output"] == str(output)
    assert 0 <= headline["float_top1"] <= 100
    combinations = {(row["calibrator"], row["runtime"]) for row in headline["results"]}
    assert len(combinations) == len(headline["results"]) == 12
    for row in headline["results"]:
        assert row.keys() >= KEYS
        assert row["agreement"] >= 80
        assert row["drop_ci95"][0] <= row["drop"] <= row["drop_ci95"][1]
        assert (row["parity"] is None) == (row["runtime"] == "pytorch")
        assert row["parity"] is None or row["parity"] == 100


def test_files_are_where_the_headline_says(ptq_run):
    output, headline, _ = ptq_run
    names = {path.name for path in output.iterdir()}
    assert names == {f"{name}.onnx" for name in ("float", "max", "percentile", "mse", "entropy")} | {
        "result.json",
        "thumbnails.json",
    }
    for row in headline["results"]:
        assert (output / f"{row['calibrator']}.onnx").stat().st_size == row["file_bytes"]
        assert row["model"] == str(output / f"{row['calibrator']}.onnx")
    assert [path.name for path in output.parent.iterdir()] == ["run"]


def test_record_tells_what_was_run(ptq_run):
    record = read_record(ptq_run[0] / "result.json")
    assert record.config["target"] == "tensorrt"
    assert len(record.inputs["weights"]) == 64
    assert (record.calibration.images, len(record.calibration.sha256)) == (16, 64)
    assert record.environment["packages"]["torch"]
    assert set(record.environment["integer_kernels"]) == {"openvino"}  # ONNX Runtime names none


def test_resolved_configuration_and_table_are_shown(ptq_run):
    _, _, done = ptq_run
    assert "calibration_images: 16" in done.stderr
    assert "searches: max" in done.stderr
    assert "simulated" in done.stderr
    assert len(done.stdout.splitlines()) == 1  # the headline alone: a program reads it


def test_help_answers_at_once_and_imports_nothing_heavy():
    started = time.perf_counter()
    code = (
        "import sys, repquant.cli.main as m; m.build_parser();"
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'openvino', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert time.perf_counter() - started < 3  # 0.2 s on an idle machine


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_explains_itself(repquant, verb):
    status, out, _ = repquant(verb, "--help")
    assert status == 0
    assert "--output" in out or verb in ("check", "evaluate")


def test_yaml_configuration_is_overridden_by_options(repquant, headline, weights, photographs, small_options, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(f"data: {photographs}\nsplit: train\nimage_size: 16\nbatch_size: 5\n")
    status, out, err = repquant("evaluate", "--config", config, "--weights", weights, *small_options, "--batch-size", 4)
    assert status == 0, err
    assert headline(out)["split"] == "train"
    assert headline(out)["results"][0]["images"] == 24
    assert "image_size: 32" in err
    assert "batch_size: 4" in err


def test_convert_writes_every_dialect_and_reads_it_back(repquant, headline, weights, tmp_path):
    source, form = weights, "training"
    for dialect, name in (("timm", "a.safetensors"), ("mmpretrain", "b.pth"), ("official", "c.safetensors")):
        output = tmp_path / name
        arguments = ("--arch", "RepVGG-tiny", "--num-classes", 2, "--weights", source, "--output", output)
        status, out, err = repquant("convert", *arguments, "--dialect", dialect)
        assert status == 0, err
        assert headline(out)["max_relative_difference"] < 1e-6
        assert headline(out)["form"] == "deploy"
        assert f"{form} -> deploy" in err
        source, form = output, "deploy"


def test_export_writes_float_and_int8_that_evaluate_runs(
    repquant, headline, weights, photographs, small_options, tmp_path
):
    sizes = {}
    int8 = ("--calibrator", "entropy", "--data", photographs, "--calibration-images", 8, "--keep-float", "first")
    for name, arguments in (("float", ()), ("int8", int8)):
        output = tmp_path / f"{name}.onnx"
        status, out, err = repquant("export", "--weights", weights, *small_options, "--output", output, *arguments)
        assert status == 0, err
        sizes[name] = headline(out)["file_bytes"]
        status, out, err = repquant(
            "evaluate", "--model", output, "--runtimes", "onnxruntime,openvino", "--data", photographs,
            "--num-classes", 2, "--image-size", 32, "--crop-ratio", 1.0,
        )  # fmt: skip
        assert status == 0, err
        assert len(headline(out)["results"]) == 2
    assert sizes["int8"] < sizes["float"] / 2


@pytest.mark.real_data
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_int8_is_as_good_as_other_tools_make_it(repquant, headline, real_data, imagenette, tmp_path):
    """The call of the contract on ImageNet photographs, held to what other tools reach on the same checkpoint.

    KL to float: pytorch-quantization's, 512 calibration images, all layers (the table beside the data); at most 15 %
    above it.
    """
    others_kl = {"max": 13.2e-3, "percentile": 10.2e-3, "mse": 10.5e-3, "entropy": 10.9e-3}
    status, out, err = repquant(
        "ptq", "--arch", "RepVGG-A0", "--num-classes", 10, "--weights", real_data / "repvgg-a0-custom-l2.pth",
        "--data", imagenette, "--image-size", 160, "--crop-ratio", 1.0, "--calibration-images", 512,
        "--calibrator", "all", "--target", "tensorrt", "--runtimes", "pytorch,onnxruntime,openvino",
        "--output", tmp_path / "a0",
    )  # fmt: skip
    assert status == 0, err
    found = headline(out)
    assert found["float_top1"] == pytest.approx(85.76, abs=0.05)
    assert found["images"] == 3925
    rows = {(row["calibrator"], row["runtime"]): row for row in found["results"]}
    assert len(rows) == 12
    for (calibrator, runtime), row in rows.items():
        assert row["kl"] <= 1.15 * others_kl[calibrator], (calibrator, runtime)
        if int8_support().safe:  # elsewhere the runtimes saturate
            assert runtime == "pytorch" or row["parity"] >= 99.8, (calibrator, runtime)
        assert row["file_bytes"] <= 8_700_000
    assert rows["entropy", "onnxruntime"]["drop"] <= 0.4


@pytest.mark.real_data
def test_real_photographs_and_checkpoint(repquant, headline, real_data, imagenette, tmp_path):
    val = tmp_path / "data" / "val"
    for folder in sorted((imagenette / "val").iterdir()):
        (val / folder.name).mkdir(parents=True)
        for image in sorted(folder.iterdir())[:10]:
            (val / folder.name / image.name).symlink_to(image)
    (tmp_path / "data" / "train").symlink_to(imagenette / "train")
    status, out, err = repquant(
        "ptq", "--arch", "RepVGG-A0", "--num-classes", 10, "--weights", real_data / "repvgg-a0-custom-l2.pth",
        "--data", tmp_path / "data", "--image-size", 160, "--crop-ratio", 1.0, "--calibration-images", 32,
        "--calibrator", "entropy", "--target", "onnxruntime", "--rounding", "nearest", "--output", tmp_path / "run",
    )  # fmt: skip
    assert status == 0, err
    rows = {row["runtime"]: row for row in headline(out)["results"]}
    assert rows["pytorch"]["agreement"] >= 90
    assert rows["onnxruntime"]["parity"] >= 99
    assert rows["openvino"]["parity"] >= 98
