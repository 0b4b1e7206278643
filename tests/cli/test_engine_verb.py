"""`repquant engine`, against a stand-in for TensorRT that is made from the vendor's type stubs."""

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fake_tensorrt import FakeTensorRT
from repquant.runtimes import tensorrt as tensorrt_runtime
from repquant.runtimes.device_memory import TorchMemory


def save(path, sizes=("n", 3, 8, 8), *, quantized=True, external=False):
    constants = [numpy_helper.from_array(np.float32(0.1), "s"), numpy_helper.from_array(np.int8(0), "z")]
    constants.append(numpy_helper.from_array(np.ones((192, 2), np.float32), "w"))
    nodes = [helper.make_node("Flatten", ["images"], ["flat"]), helper.make_node("MatMul", ["x", "w"], ["logits"])]
    if quantized:
        nodes.insert(1, helper.make_node("QuantizeLinear", ["flat", "s", "z"], ["q"]))
        nodes.insert(2, helper.make_node("DequantizeLinear", ["q", "s", "z"], ["x"]))
    else:
        nodes.insert(1, helper.make_node("Identity", ["flat"], ["x"]))
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, sizes)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 2])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, path, save_as_external_data=external, location="weights.bin", size_threshold=0)
    return path


@pytest.fixture
def fake(monkeypatch):
    fake = FakeTensorRT()
    monkeypatch.setitem(sys.modules, "tensorrt", fake.module())
    monkeypatch.setattr(tensorrt_runtime, "open_memory", lambda: TorchMemory("cpu"))
    return fake


def test_an_engine_its_cache_and_its_layers(repquant, headline, fake, tmp_path):
    path, output = save(tmp_path / "m.onnx"), tmp_path / "m.engine"
    status, out, err = repquant("engine", path, "--output", output, "--batch", "1,2,4", "--workspace", 7)
    assert status == 0, err
    told = headline(out)
    assert told["file_bytes"] == output.stat().st_size
    assert told["layers"] == {"FP16": 1, "FP32": 1, "INT8": 1, "reformat": 1}
    assert told["tensorrt"] == "10.13.0.35"
    assert Path(told["timing_cache"]).read_bytes() == b"timings"
    assert told["trtexec"] == (
        f"trtexec --onnx={path} --saveEngine={output} --stronglyTyped --minShapes=images:1x3x8x8 "
        "--optShapes=images:2x3x8x8 --maxShapes=images:4x3x8x8 --memPoolSize=workspace:7M --profilingVerbosity=detailed"
    )
    assert told["trtexec"] in err
    assert "INT8  conv + relu" in err
    assert ("profile", "images", (1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8)) in fake.asked
    status, _, err = repquant("engine", path, "--output", output, "--overwrite", "true")
    assert status == 0, err
    assert ("cache", b"timings") in fake.asked


def test_an_engine_is_evaluated(repquant, headline, fake, photographs, tmp_path):
    path, output = save(tmp_path / "m.onnx"), tmp_path / "m.engine"
    assert repquant("engine", path, "--output", output)[0] == 0
    status, out, err = repquant(
        "evaluate", "--runtimes", "tensorrt", "--model", output, "--data", photographs, "--num-classes", 2,
        "--image-size", 8, "--crop-ratio", 1.0,
    )  # fmt: skip
    assert status == 0, err
    assert headline(out)["results"][0] | {"images": 16, "runtime": "tensorrt"} == headline(out)["results"][0]


def test_ptq_proves_on_tensorrt(repquant, headline, fake, weights, photographs, small_options, tmp_path):
    status, out, err = repquant(
        "ptq", "--weights", weights, *small_options, "--data", photographs, "--target", "tensorrt",
        "--calibrator", "max", "--calibration-images", 4, "--rounding", "nearest", "--weight-bits", 7,
        "--runtimes", "pytorch,tensorrt",
        "--output", tmp_path / "run",
    )  # fmt: skip
    assert status == 0, err
    rows = {row["runtime"]: row for row in headline(out)["results"]}
    assert rows["tensorrt"]["parity"] == 100


def test_options_of_the_engine(repquant, fake, tmp_path):
    path = save(tmp_path / "m.onnx")
    status, _, err = repquant(
        "engine", path, "--output", tmp_path / "m.plan", "--version-compatible", "--hardware-compatible",
        "--timing-cache", tmp_path / "own.cache",
    )  # fmt: skip
    assert status == 0, err
    assert "--versionCompatible --hardwareCompatibilityLevel=ampere+" in err
    assert (tmp_path / "own.cache").is_file()
    fake.config.set_flag.assert_called_once_with(fake.stubs.BuilderFlag.VERSION_COMPATIBLE)


@pytest.mark.parametrize(
    ("file", "options", "message"),
    [
        ("text.onnx", (), "text.onnx is no ONNX file"),
        ("missing.onnx", (), "missing.onnx does not exist"),
        ("old.engine", (), "old.engine is a TensorRT engine; give the ONNX file that it was built from"),
        ("float.onnx", (), "holds no quantizers, and TensorRT would build a float engine"),
        ("external.onnx", (), "has tensors in weights.bin, which is not beside it"),
        ("dynamic.onnx", (), "takes images of shape n x 3 x h x w: sizes besides the batch vary; export it with fixed"),
        ("good.onnx", ("--batch", "16,1,64"), "give the smallest, the best and the largest, in this order"),
        ("good.onnx", ("--batch", "16"), "--batch 16 was given; give three numbers with commas"),
        ("good.onnx", ("--workspace", 0), "--workspace 0 was given; allowed is from 1"),
        ("good.onnx", ("--output", "there.engine"), "there.engine exists; choose another file or pass --overwrite"),
        ("good.onnx", ("--output", "m.trt"), "does not end in .engine or .plan"),
        ("good.onnx", ("--output", "good.onnx/m.engine"), "can't write to good.onnx"),
    ],
)
def test_bad_input_leaves_nothing(repquant, fake, tmp_path, monkeypatch, file, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.onnx").write_text("no model")
    (tmp_path / "old.engine").write_bytes(b"ftrt" + bytes(10))
    (tmp_path / "there.engine").write_text("old")
    save(tmp_path / "float.onnx", quantized=False)
    save(tmp_path / "dynamic.onnx", ("n", 3, "h", "w"))
    save(tmp_path / "external.onnx", external=True)
    (tmp_path / "weights.bin").unlink()
    save(tmp_path / "good.onnx")
    before = {path.name for path in tmp_path.iterdir()}
    output = () if "--output" in options else ("--output", "m.engine")
    status, _, err = repquant("engine", file, *output, *options)
    assert status == 2
    assert message in err
    assert "Traceback" not in err
    assert {path.name for path in tmp_path.iterdir()} == before
    assert (tmp_path / "there.engine").read_text() == "old"


def test_without_a_gpu(repquant, fake, tmp_path):
    fake.fails = {"gpu": "CUDA initialization failure with error: 100"}
    status, _, err = repquant("engine", save(tmp_path / "m.onnx"), "--output", tmp_path / "m.engine")
    assert status == 2
    assert "TensorRT finds no GPU that it can use: CUDA initialization failure" in err
    assert not (tmp_path / "m.engine").exists()


def test_without_tensorrt(repquant, tmp_path):
    status, _, err = repquant("engine", save(tmp_path / "m.onnx"), "--output", tmp_path / "m.engine")
    assert status == 2
    assert "TensorRT is not installed; run pip install tensorrt" in err
    assert "trtexec --onnx=" in err  # for a machine that has it
