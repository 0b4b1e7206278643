"""What the options of `ptq` do to the files and to the record."""

import shutil

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from repquant.data.builtin_set import BuiltinSet
from repquant.methods import ptq as quant_ptq
from repquant.methods.reconstruct import ReconstructionOptions
from repquant.methods.rounding_checkpoint import LearnedLayers
from repquant.models.zoo import BUILTIN_ARCH, BUILTIN_CLASSES, BUILTIN_IMAGE_SIZE
from repquant.report.record import headline as headline_of
from repquant.report.record import read_record
from repquant.runtimes.cpu import int8_support


@pytest.fixture
def ptq(repquant, weights, photographs, small_options, tmp_path):
    """Run `ptq` on 8 calibration images: (status, stdout, stderr); the output is tmp_path / "run"."""

    def run(*arguments):
        return repquant(
            "ptq", "--weights", weights, "--data", photographs, *small_options, "--calibration-images", 8,
            "--output", tmp_path / "run", *arguments,
        )  # fmt: skip

    return run


def weights_of(path):
    """Each Conv's and Gemm's weights: (integers or None, their scale or None)."""
    graph = onnx.load(path).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    producers = {node.output[0]: node for node in graph.node}
    found = []
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm"):
            dequantize = producers.get(node.input[1])
            found.append((None, None) if dequantize is None else [constants[name] for name in dequantize.input[:2]])
    return found


def test_float_layers_and_one_scale_a_layer_and_seven_bits(ptq, headline, tmp_path):
    status, out, err = ptq(
        "--target", "onnxruntime", "--calibrator", "percentile", "--keep-float", "first, last", "--per-tensor-weights",
        "--vnni", "no", "--runtimes", "all",
    )  # fmt: skip
    assert status == 0, err
    (first, _), *inner, (last, _) = weights_of(tmp_path / "run" / "percentile.onnx")
    assert first is None
    assert last is None
    for integers, scale in inner:
        assert integers.dtype == np.int8
        assert np.abs(integers).max() == 63
        assert scale.size == 1
    assert "weights are in 7 bits" in err
    record = read_record(tmp_path / "run" / "result.json")
    assert "weights are in 7 bits" in record.notes[1]
    assert headline(out) == headline_of(record)
    rows = {row.runtime: row for row in record.results}
    assert rows.keys() == {"pytorch", "onnxruntime", "openvino", "litert", "executorch"}
    assert (
        rows["onnxruntime"].parity
        == rows["openvino"].parity
        == rows["litert"].parity
        == rows["executorch"].parity
        == 100
    )


def test_default_is_every_layer_with_a_scale_for_each_channel(ptq_run):
    output, _, _ = ptq_run
    layers = weights_of(output / "entropy.onnx")
    assert len(layers) == 1 + 2 + 3 + 4 + 1 + 1  # stem, four stages, head
    largest = 127 if int8_support().safe else 63  # as the fixture asks for
    for integers, scale in layers:
        assert np.abs(integers).max() == largest
        assert scale.shape == integers.shape[:1]


def test_images_without_labels_calibrate_and_compare_but_have_no_accuracy(ptq, photographs, headline, tmp_path):
    unlabeled = shutil.copytree(photographs / "val" / "dark", tmp_path / "unlabeled" / "val").parent
    status, out, err = ptq(
        "--target", "openvino", "--calibrator", "mse", "--runtimes", "pytorch", "--rounding-images", 0,
        "--data", unlabeled, "--calibration-data", photographs / "train" / "bright",
    )  # fmt: skip
    assert status == 0, err
    (row,) = headline(out)["results"]
    assert headline(out)["float_top1"] is None
    assert (row["top1"], row["drop"], row["drop_ci95"]) == (None, None, None)
    assert row["agreement"] >= 80
    assert row["kl"] < 1e-2


@pytest.mark.slow  # by default `export` shows the same, down to the integers of the file
def test_learned_rounding_goes_on_where_it_was_interrupted(ptq, headline, tmp_path, monkeypatch):
    options = (
        "--target", "onnxruntime", "--calibrator", "mse", "--runtimes", "pytorch", "--rounding", "learned",
        "--reconstruction-steps", 5, "--identity", "residual",
    )  # fmt: skip
    status, out, _ = ptq(*options)
    assert status == 0
    whole = headline(out)["results"]
    shutil.rmtree(tmp_path / "run")

    add = LearnedLayers.add
    learned = []

    def add_until_interrupted(self, name, result):
        add(self, name, result)
        learned.append(name)
        if len(learned) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(LearnedLayers, "add", add_until_interrupted)
    status, _, _ = ptq(*options)
    assert status == 1
    assert [path.name for path in tmp_path.iterdir()] == ["run.mse.rounding"]
    status, out, _ = ptq(*options)
    assert status == 0
    assert len(learned) == len(set(learned))
    resumed = headline(out)["results"]
    for key in ("agreement", "kl", "sqnr_db"):
        assert resumed[0][key] == whole[0][key]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_checkpoint_of_another_run_is_found_before_anything_is_learned(ptq, tmp_path, monkeypatch):
    """That of the second calibrator alone, left behind by a run with other steps."""
    options = ("--target", "onnxruntime", "--runtimes", "pytorch", "--rounding", "learned", "--calibrator")

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LearnedLayers, "add", interrupt)
        assert ptq(*options, "mse", "--reconstruction-steps", 4)[0] == 1
    learned = []
    monkeypatch.setattr(LearnedLayers, "add", lambda *what: learned.append(what))
    status, _, err = ptq(*options, "max,mse", "--reconstruction-steps", 5)
    assert status == 2
    assert "run.mse.rounding is of another reconstruction, with other options" in err
    assert learned == []
    assert [path.name for path in tmp_path.iterdir()] == ["run.mse.rounding"]


def test_activations_of_few_bits_are_simulated_and_nothing_is_exported(ptq, headline, tmp_path):
    status, out, err = ptq(
        "--target", "onnxruntime", "--calibrator", "mse", "--activation-bits", 4, "--weight-bits", 4,
        "--runtimes", "pytorch",
    )  # fmt: skip
    assert status == 0, err
    (row,) = headline(out)["results"]
    assert (row["model"], row["file_bytes"]) == (None, None)
    assert "activations of 4 bits are simulated" in err
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"float.onnx", "result.json", "thumbnails.json"}


@pytest.fixture(scope="module")
def builtin_images(tmp_path_factory):
    """80 images of each split of the built-in set, as a folder."""
    root = tmp_path_factory.mktemp("builtin")
    for split in ("train", "val"):
        images = BuiltinSet(split)
        for index in range(80):
            folder = root / split / str(images.label(index))
            folder.mkdir(parents=True, exist_ok=True)
            images.image(index).save(folder / f"{index}.png")
    return root


@pytest.mark.parametrize(
    ("bits", "runtimes", "largest"), [((6, 8), "pytorch,onnxruntime", 31), ((8, 6), "pytorch", None)], ids=str
)
def test_six_bits_on_the_checkpoint_that_ships(repquant, builtin_images, headline, tmp_path, bits, runtimes, largest):
    """W6A8 is exported and run, W8A6 is simulated; both answer nearly as float does."""
    status, out, err = repquant(
        "ptq", "--arch", BUILTIN_ARCH, "--num-classes", BUILTIN_CLASSES, "--weights", "builtin",
        "--data", builtin_images, "--image-size", BUILTIN_IMAGE_SIZE, "--crop-ratio", 1.0, "--calibration-images", 64,
        "--calibrator", "mse", "--target", "onnxruntime", "--vnni", "yes", "--weight-bits", bits[0],
        "--activation-bits", bits[1],
        "--runtimes", runtimes, "--output", tmp_path / "run",
    )  # fmt: skip
    assert status == 0, err
    rows = headline(out)["results"]
    assert [row["runtime"] for row in rows] == runtimes.split(",")
    for row in rows:
        assert row["agreement"] >= 95
        assert 1e-4 < row["kl"] < 0.05, "coarser than 8 bits, and far from dead"
        assert row["parity"] in (None, 100)
    if largest is None:
        assert "activations of 6 bits are simulated" in err
        assert not (tmp_path / "run" / "mse.onnx").exists()
    else:
        assert {np.abs(integers).max() for integers, _ in weights_of(tmp_path / "run" / "mse.onnx")} == {largest}


def test_every_option_of_learned_rounding_and_of_the_weights(ptq, headline, monkeypatch):
    """QDrop, RepAPQ's absolute error and gains, whole blocks with the identity beside them, ranges by a search."""
    reconstruct, asked_for = quant_ptq.reconstruct, []

    def listen(model, quantized, images, options, **others):
        asked_for.append(options)
        return reconstruct(model, quantized, images, options, **others)

    monkeypatch.setattr(quant_ptq, "reconstruct", listen)
    status, out, err = ptq(
        "--target", "openvino", "--calibrator", "mse", "--runtimes", "pytorch", "--weight-bits", 4,
        "--identity", "residual", "--weight-ranges", "mse", "--rounding", "learned", "--reconstruction-steps", 30,
        "--reconstruction-unit", "block", "--reconstruction-drop", 0.5, "--reconstruction-loss", "mae",
        "--reconstruction-gains",
    )  # fmt: skip
    assert status == 0, err
    assert headline(out)["results"][0]["agreement"] >= 80
    assert asked_for == [ReconstructionOptions(steps=30, granularity="block", loss="mae", drop=0.5, affine=True)]


def test_latency_is_in_the_record_and_in_the_table(ptq, headline, tmp_path, monkeypatch):
    """Engines' times are their own: what is looked at is which calls are made, and where the figures go."""
    from repquant.bench import latency

    asked = []

    def measure(calls):
        asked.append(sorted(calls))
        for call in calls.values():
            assert call().shape == (1, 2)
        return {name: [8.0, 8.0] if name == "float" else [2.0, 2.0] for name in calls}

    monkeypatch.setattr(latency, "measure_latency", measure)
    status, out, err = ptq(
        "--target", "onnxruntime", "--calibrator", "max,mse", "--runtimes", "pytorch,onnxruntime", "--benchmark",
        "--rounding", "nearest", "--equalization", "none",
    )  # fmt: skip
    assert status == 0, err
    assert asked == [["float", "max", "mse"]]
    rows = read_record(tmp_path / "run" / "result.json").results
    measured = {row.runtime: (row.latency_ms, row.latency_ratio, row.latency_ratio_ci95) for row in rows}
    assert measured == {"pytorch": (None, None, None), "onnxruntime": (2.0, 0.25, (0.25, 0.25))}
    assert headline(out)["results"][1]["latency_ms"] == 2.0
    assert "latency" in out
