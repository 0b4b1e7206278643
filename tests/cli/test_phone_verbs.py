"""The verbs with files for phones."""

import json

import pytest

pytest.importorskip("ai_edge_litert", reason="pip install 'repquant[litert]'")


def test_ptq_proves_the_files_of_each_runtime(repquant, headline, weights, photographs, small_options, tmp_path):
    status, out, err = repquant(
        "ptq", "--weights", weights, "--data", photographs, *small_options, "--calibration-images", "16",
        "--calibrator", "mse", "--target", "litert", "--runtimes", "litert,onnxruntime", "--output", tmp_path / "run",
    )  # fmt: skip
    assert status == 0, err
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "float.onnx", "mse.onnx", "mse.tflite", "result.json", "thumbnails.json",
    }  # fmt: skip
    rows = json.loads((tmp_path / "run" / "result.json").read_text())["results"]
    assert [(row["runtime"], row["model"].rpartition("/")[2]) for row in rows] == [
        ("litert", "mse.tflite"),
        ("onnxruntime", "mse.onnx"),
    ]
    assert [row["parity"] for row in rows] == [100.0, 100.0]

    file = tmp_path / "run" / "mse.tflite"
    status, out, err = repquant("check", file, "--target", "litert")
    assert (status, headline(out)["counts"]) == (0, {"runs in float": 1}), err
    status, out, err = repquant(
        "evaluate", "--runtimes", "litert", "--model", file, "--data", photographs, *small_options[2:]
    )
    assert status == 0, err
    assert headline(out)["results"][0]["images"] == 16


def test_export_writes_what_the_suffix_says(repquant, headline, weights, photographs, small_options, tmp_path):
    float_file = tmp_path / "float.tflite"
    status, out, err = repquant("export", "--weights", weights, *small_options, "--output", float_file)
    assert status == 0, err
    assert headline(out)["file_bytes"] == float_file.stat().st_size
    int8 = ("--calibrator", "max", "--data", photographs, "--calibration-images", "4", "--target", "tensorrt")
    status, _, err = repquant("export", "--weights", weights, *small_options, "--output", tmp_path / "x.tflite", *int8)
    assert status == 2
    assert ".tflite was given; files for target tensorrt end in .onnx; it keeps sums in 32 bits" in err
    assert not (tmp_path / "x.tflite").exists()


def test_ptq_for_executorch(repquant, headline, weights, photographs, small_options, tmp_path):
    pytest.importorskip("executorch.runtime", reason="pip install 'repquant[executorch]'")
    status, out, err = repquant(
        "ptq", "--weights", weights, "--data", photographs, *small_options, "--calibration-images", "16",
        "--calibrator", "mse", "--target", "executorch", "--output", tmp_path / "run",
    )  # fmt: skip
    assert status == 0, err
    rows = json.loads((tmp_path / "run" / "result.json").read_text())["results"]
    assert [(row["runtime"], row["parity"]) for row in rows] == [("pytorch", None), ("executorch", 100.0)]
    assert "XNNPACK runs" in err
    file = tmp_path / "run" / "mse.pte"
    status, out, err = repquant("check", file, "--target", "executorch")
    assert (status, headline(out)["refused"]) == (0, 0), err
    status, out, err = repquant("evaluate", "--model", file, "--data", photographs, *small_options[2:])
    assert status == 0, err
    assert [row["runtime"] for row in headline(out)["results"]] == ["executorch"]


def test_ptq_and_export_for_ncnn(repquant, headline, weights, photographs, small_options, tmp_path):
    pytest.importorskip("ncnn", reason="pip install 'repquant[ncnn]'")
    images = ("--data", photographs, "--calibration-images", "16", "--calibrator", "mse", "--target", "ncnn")
    status, out, err = repquant("ptq", "--weights", weights, *small_options, *images, "--output", tmp_path / "run")
    assert status == 0, err
    rows = json.loads((tmp_path / "run" / "result.json").read_text())["results"]
    assert [(row["runtime"], row["parity"]) for row in rows] == [("pytorch", None), ("ncnn", 100.0)]
    files = [tmp_path / "run" / f"mse{suffix}" for suffix in (".param", ".bin")]
    assert rows[1]["file_bytes"] == sum(file.stat().st_size for file in files)
    status, out, err = repquant("check", files[0], "--target", "ncnn")
    assert (status, headline(out)["refused"]) == (0, 0), err
    status, out, err = repquant("evaluate", "--model", files[0], "--data", photographs, *small_options[2:])
    assert status == 0, err
    assert [row["runtime"] for row in headline(out)["results"]] == ["ncnn"]
    exported = tmp_path / "x.param"
    status, out, err = repquant("export", "--weights", weights, *small_options, *images, "--output", exported)
    assert status == 0, err
    assert headline(out)["file_bytes"] == exported.stat().st_size + exported.with_suffix(".bin").stat().st_size
