"""What `check` finds in .tflite files, ours and others: each rule on a file that breaks it alone."""

import numpy as np
import pytest

import repquant
from repquant.errors import InputError
from repquant.export.litert.flat_file import FlatFile, Named
from repquant.runtimes.litert import LitertRuntime
from repquant.targets.litert_file import read_litert

pytest.importorskip("ai_edge_litert", reason="pip install 'repquant[litert]'")

IMAGE, PLAIN = (1, 4, 4, 2), (0, 1, 2, 3)


def grid(scale, zero_point=0):
    return {"scale": np.asarray([scale], np.float32), "zero_point": np.asarray([zero_point], np.int64)}


@pytest.fixture
def save(tmp_path):
    """Write a file with one int8 input, what `build` adds behind it, and its result."""

    def run(build):
        file = FlatFile()
        source = file.tensor("images", IMAGE, "int8", **grid(0.5, 3))
        result = build(file, source)
        path = tmp_path / "small.tflite"
        path.write_bytes(file.content([Named("images", source, PLAIN)], [Named("y", result, PLAIN)]))
        return path

    return run


def convolution(*, weight_zero=0, bias_scale=0.05, scales=(0.1,), axis=0):
    def build(file, source):
        weight = file.constant(
            "weight",
            np.ones((2, 1, 1, 2), np.int8),
            scale=np.asarray(scales, np.float32),
            zero_point=np.full(len(scales), weight_zero),
            axis=axis,
        )
        bias = file.constant("bias", np.zeros(2, np.int32), scale=np.asarray([bias_scale] * len(scales), np.float32))
        result = file.tensor("y", IMAGE, "int8", **grid(1.0))
        settings = {"strideH": 1, "strideW": 1, "dilationHFactor": 1, "dilationWFactor": 1, "padding": 1}
        file.operator("CONV_2D", [source, weight, bias], result, "Conv2DOptions", 3, **settings)
        return result

    return build


def single(kind, options="", *, result_grid, **settings):
    def build(file, source):
        result = file.tensor("y", IMAGE, "int8", **result_grid)
        file.operator(kind, [source], result, options, 2, **settings)
        return result

    return build


POOL = {"strideH": 1, "strideW": 1, "filterHeight": 1, "filterWidth": 1}


def test_nothing_to_find(save):
    assert repquant.check(save(convolution()), "litert") == ()
    assert repquant.check(save(convolution(scales=(0.1, 0.1))), "litert") == ()


@pytest.mark.parametrize(
    ("build", "rule", "detail"),
    [
        (convolution(weight_zero=2), "weight-grid", "a zero point of its weights is not 0"),
        (convolution(scales=(0.1, 0.1), axis=3), "weight-grid", "needs them on axis 0"),
        (convolution(bias_scale=0.06), "bias-grid", "not input scale x weight scale"),
        (
            single("MAX_POOL_2D", "Pool2DOptions", result_grid=grid(0.25, 3), **POOL),
            "shared-grid",
            "MAX_POOL_2D reads and writes 0.5 and 3, 0.25 and 3",
        ),
        (single("LOGISTIC", result_grid=grid(0.1)), "fixed-grid", "writes 0.1 and 0, not 1/256 and -128"),
    ],
)
def test_each_rule(save, build, rule, detail):
    found = [finding for finding in repquant.check(save(build), "litert") if finding.rule.name == rule]
    assert [finding.node for finding in found] == ["y"]
    assert detail in found[0].detail


def test_what_runs_in_float_or_without_xnnpack_is_named(save):
    def build(file, source):
        plain = file.tensor("plain", IMAGE, "float32")
        file.operator("DEQUANTIZE", [source], plain, "DequantizeOptions", 2)
        sine = file.tensor("sine", IMAGE, "float32")
        file.operator("SIN", [plain], sine)
        result = file.tensor("y", IMAGE, "float32")
        places = file.constant("places", np.asarray([3, 2, 1, 0], np.int32))
        file.operator("GATHER", [sine, places], result, "GatherOptions", axis=2)
        return result

    found = {(finding.rule.name, finding.node) for finding in repquant.check(save(build), "litert")}
    assert {("integer-operator", "sine"), ("integer-operator", "y"), ("not-delegated", "y")} <= found


def test_a_file_from_elsewhere_says_its_own_shapes(save, monkeypatch):
    monkeypatch.setattr("repquant.export.litert.flat_file.METADATA", "somebody")
    path = save(convolution())
    assert repquant.check(path, "litert") == ()
    assert LitertRuntime(path, threads=1).inputs == {"images": IMAGE}


def test_a_damaged_file(save, tmp_path):
    content = save(convolution()).read_bytes()
    for size in (0, 7, 40, len(content) // 2, len(content) - 60):
        damaged = tmp_path / "damaged.tflite"
        damaged.write_bytes(content[:size])
        for read in (read_litert, lambda path: repquant.check(path, "litert"), LitertRuntime):
            with pytest.raises(InputError, match=r"is no \.tflite file|is damaged|can't load"):
                read(damaged)
    with pytest.raises(InputError, match=r"does not exist; give a \.tflite file"):
        read_litert(tmp_path / "none.tflite")


def test_each_target_reads_its_own_kind_of_file(save, tmp_path):
    path = save(convolution())
    with pytest.raises(InputError, match=r"onnxruntime reads \.onnx files, and .*small\.tflite was given; .* litert"):
        repquant.check(path, "onnxruntime")
    with pytest.raises(InputError, match=r"tensorrt reads \.onnx files"):
        repquant.check(path, "tensorrt")
    with pytest.raises(InputError, match=r"litert reads \.tflite files, and .*x\.onnx was given; .* onnxruntime"):
        repquant.load(tmp_path / "x.onnx", runtime="litert")
