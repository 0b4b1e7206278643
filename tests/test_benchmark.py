"""The library's verb and the command line's, against engines whose time stands still but for what they say."""

import json
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import repquant as rq
from repquant.bench import latency
from repquant.cli.main import main
from repquant.errors import InputError
from repquant.runtimes.layer_time import LayerTime

MS = {"float": 8.0, "int8": 2.0}
LAYERS = (
    LayerTime(name="conv", kind="QLinearConv", precision="INT8", milliseconds=1.5),
    LayerTime(name="head", kind="Softmax", precision="FP32", milliseconds=0.5),
)


def save(path, batch="n", side=4, name="images"):
    """A matrix product of 3 x side x side numbers with 10."""
    size = 3 * side * side
    graph = helper.make_graph(
        [helper.make_node("Flatten", [name], ["f"]), helper.make_node("MatMul", ["f", "w"], ["logits"])],
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 3, side, side])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 10])],
        [helper.make_tensor("w", TensorProto.FLOAT, (size, 10), [0.0] * size * 10)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


@pytest.fixture
def world(monkeypatch, tmp_path):
    """Engines that take so many milliseconds a call and tell of their layers; nothing runs in a process of its own."""
    module = import_module("repquant.benchmark")
    world = SimpleNamespace(now=0.0, opened=[], files={})

    class Engine:
        version = "1.0"

        def __init__(self, name, path, threads):
            self.name, self.stem = name, path.stem
            known = onnx.load(path).graph.input[0]
            self.inputs = {known.name: tuple(size.dim_value or None for size in known.type.tensor_type.shape.dim)}
            world.opened.append((name, path.name, threads))

        def __call__(self, images):
            assert images.dtype == np.float32
            world.now += MS[self.stem] * len(images) / 1000

        def profile(self, *_, **__):
            return LAYERS if self.stem == "int8" else ()

    monkeypatch.setattr(latency, "perf_counter", lambda: world.now)
    monkeypatch.setattr(module, "open_runtime", Engine)
    monkeypatch.setattr(module, "int8_peak", lambda runtime, _: {"onnxruntime": 0.5, "openvino": 0.96}[runtime])
    monkeypatch.setattr(module, "own_memory", lambda *_: 12.0)
    world.files = {name: save(tmp_path / f"{name}.onnx") for name in MS}
    return world


def test_every_setting_beside_the_float_file(world, tmp_path):
    measured = rq.benchmark(
        world.files["int8"], baseline=world.files["float"], runtimes=("onnxruntime", "openvino"), threads=(1, 2),
        batch=(1, 16), rounds=4, warm_up=1,
    )  # fmt: skip
    assert len(measured.rows) == 2 * 2 * 2 * 2
    assert measured.baseline == "float"
    assert {(row.runtime, row.threads) for row in measured.rows} == {
        (runtime, threads) for runtime in ("onnxruntime", "openvino") for threads in (1, 2)
    }
    for row in measured.rows:
        assert row.median_ms == pytest.approx(row.batch * MS[row.model])
        assert row.images_per_second == pytest.approx(1000 / MS[row.model])
        assert row.ratio == pytest.approx(MS[row.model] / 8)
        # 480 multiplications an image; the peak is the machine's: the better of the two engines, 0.96 GMAC/s.
        assert row.gmacs_per_second == pytest.approx(480 / MS[row.model] / 1e6)
        assert row.peak_share == pytest.approx(100 * row.gmacs_per_second / 0.96)
        assert row.memory_mb == 12
        assert row.float_share == (25 if row.model == "int8" else None)
        assert len(row.samples_ms) == 4
    kept = json.loads(measured.save(tmp_path / "speed.json").read_text())
    assert kept["rows"][1]["layers"][1]["precision"] == "FP32"
    assert kept["environment"]["packages"]
    table = str(measured)
    assert "| onnxruntime, 1 thread, batch 16 | int8 | 32.00 | 32.00 | 0.25 [0.25, 0.25] | 500 |" in table
    assert "cores" in table
    assert measured.save(tmp_path / "speed.md").read_text() == f"{table}\n"


def test_without_a_baseline_or_settings(world):
    measured = rq.benchmark(world.files["int8"], runtimes=("openvino",), rounds=1)
    (row,) = measured.rows
    assert (row.threads, row.batch, row.ratio, measured.baseline) == (None, 1, None, None)
    assert world.opened == [("openvino", "int8.onnx", None)]


def test_by_default_what_is_installed_runs_and_reads_such_files(world, monkeypatch):
    everything = ("pytorch", "onnxruntime", "openvino", "litert", "executorch", "ncnn")
    monkeypatch.setattr(import_module("repquant.benchmark"), "installed", lambda: everything)
    assert [row.runtime for row in rq.benchmark(world.files["int8"], rounds=1).rows] == ["onnxruntime", "openvino"]


def test_each_runtime_runs_the_files_that_it_reads(world, tmp_path, monkeypatch):
    everything = ("pytorch", "onnxruntime", "litert")
    monkeypatch.setattr(import_module("repquant.benchmark"), "installed", lambda: everything)
    tflite = save(tmp_path / "int8.tflite")
    rows = rq.benchmark(world.files["int8"], tflite, baseline=world.files["float"], rounds=1).rows
    assert [(row.runtime, row.model, row.ratio is None) for row in rows] == [
        ("onnxruntime", "float", False),
        ("onnxruntime", "int8.onnx", False),
        ("litert", "int8.tflite", True),
    ]
    assert rows[-1].gmacs_per_second is None
    with pytest.raises(InputError, match="runtime openvino reads none of the files"):
        rq.benchmark(tflite, runtimes=("openvino", "litert"))
    with pytest.raises(InputError, match=r"no runtime reads .*int8\.tflite: litert would"):
        rq.benchmark(world.files["int8"], tflite, runtimes=("openvino",))


def test_files_of_one_name_keep_their_paths(world, tmp_path):
    (tmp_path / "other").mkdir()
    other = save(tmp_path / "other" / "int8.onnx", name="pixels")
    rows = rq.benchmark(world.files["int8"], other, runtimes=("openvino",), rounds=1).rows
    assert [row.model for row in rows] == [str(world.files["int8"]), str(other)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"runtimes": ("openvina",)}, "unknown runtime 'openvina'; did you mean openvino?"),
        ({"batch": (0,)}, "threads and batches of 0 were asked for"),
        ({"threads": (-1,)}, "threads and batches of -1 were asked for"),
        ({"rounds": 0}, "0 rounds after 5"),
    ],
)
def test_settings_that_make_no_run(world, settings, message):
    with pytest.raises(InputError, match=message):
        rq.benchmark(world.files["int8"], **{"runtimes": ("openvino",), **settings})


def test_no_file():
    with pytest.raises(InputError, match="there is no file to measure"):
        rq.benchmark(runtimes=("openvino",))


def test_files_that_can_not_be_compared(world, tmp_path):
    larger = save(tmp_path / "larger.onnx", side=8)
    with pytest.raises(InputError, match=r"larger takes .*8, 8.*, and int8 .*4, 4.*: their times can't be compared"):
        rq.benchmark(world.files["int8"], larger, runtimes=("openvino",), rounds=1)


def test_a_file_with_a_batch_of_its_own(world, tmp_path):
    fixed = save(tmp_path / "int8.onnx", batch=1)
    with pytest.raises(InputError, match="takes batches of exactly 1"):
        rq.benchmark(fixed, runtimes=("openvino",), batch=(1, 16), rounds=1)


def test_the_verb(world, tmp_path, capsys):
    output = tmp_path / "speed.json"
    status = main([
        "benchmark", str(world.files["int8"]), "--float", str(world.files["float"]), "--runtimes", "onnxruntime",
        "--threads", "1,2", "--batch", "1,16", "--rounds", "3", "--output", str(output),
    ])  # fmt: skip
    shown = capsys.readouterr()
    assert status == 0, shown.err
    headline = json.loads(shown.out.strip().splitlines()[-1])
    assert headline["baseline"] == "float"
    assert [row["model"] for row in headline["results"]] == ["float", "int8"] * 4
    assert headline["results"][1]["float_kernels"] == ["head"]
    assert "samples_ms" not in headline["results"][0]
    assert "onnxruntime, 2 threads, batch 16" in shown.err
    assert "int8, onnxruntime, 1 thread, batch 1" in shown.err, "the layers of the first setting"
    assert "int8 in onnxruntime, not in integers: head (FP32, 0.500 ms)" in shown.err
    assert "int8 matrix products reach 0.5 GMAC/s on this CPU" in shown.err
    assert len(json.loads(output.read_text())["rows"]) == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "required: FILES"),
        (("missing.onnx",), "model file missing.onnx does not exist"),
        (("text.onnx",), "text.onnx is no ONNX file"),
        (("text.onnx", "--batch", "1;16"), "--batch 1;16 was given; give numbers with commas"),
        (("text.onnx", "--threads", "0"), "--threads 0 was given; give numbers from 1 on"),
        (("text.onnx", "--runtimes", "pytorch"), "runtimes: 'pytorch' was given; allowed are onnxruntime"),
        (("text.onnx", "--output", "speed.txt"), "output speed.txt does not end in .json or .md"),
    ],
)
def test_bad_input(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.onnx").write_text("no model")
    try:
        status = main(["benchmark", *arguments])
    except SystemExit as stopped:
        status = stopped.code
    shown = capsys.readouterr()
    assert (status, shown.out) == (2, "")
    assert message in shown.err
    assert "Traceback" not in shown.err
