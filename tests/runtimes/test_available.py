import subprocess
import sys
from types import SimpleNamespace

import pytest

from repquant.errors import InputError
from repquant.runtimes import available
from repquant.runtimes.available import installed, open_runtime, require, require_fit


def test_all_engines_are_installed_for_the_tests():
    assert installed() == ("pytorch", "onnxruntime", "openvino", "litert", "executorch", "ncnn")
    for name in installed():
        require(name)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_opens_a_file_in_an_engine(name, float_model, images):
    runtime = open_runtime(name, float_model.path, threads=1)
    assert runtime.name == name
    assert runtime(images).shape == (12, 10)


def test_unknown_name_gets_the_nearest_one():
    with pytest.raises(InputError, match="unknown runtime 'onxruntime'; did you mean onnxruntime\\? choose from pyt"):
        require("onxruntime")
    with pytest.raises(InputError, match="unknown runtime 'q'; choose from pytorch, onnxruntime, openvino, tensorrt"):
        require("q")


def test_missing_engine_names_its_extra(monkeypatch):
    monkeypatch.setattr(
        available,
        "find_spec",
        lambda name: SimpleNamespace(origin="a file" if name in ("torch", "onnxruntime") else None),
    )
    assert installed() == ("pytorch", "onnxruntime")
    with pytest.raises(InputError, match=r"pip install 'repquant\[openvino\]', or choose from pytorch, onnxruntime"):
        require("openvino")
    with pytest.raises(InputError, match=r"litert is not installed; run pip install 'repquant\[litert\]'"):
        require("litert")
    with pytest.raises(InputError, match=r"executorch is not installed; run pip install 'repquant\[executorch\]'"):
        require("executorch")
    with pytest.raises(InputError, match=r"ncnn is not installed; run pip install 'repquant\[ncnn\]'"):
        require("ncnn")


def test_a_package_that_is_missing_around_an_engine_is_no_error(monkeypatch):
    def missing(name):
        if name.startswith("executorch"):
            raise ModuleNotFoundError(name)
        return SimpleNamespace(origin="a file")

    monkeypatch.setattr(available, "find_spec", missing)
    assert "executorch" not in installed()


def test_pytorch_runs_no_files(float_model):
    with pytest.raises(
        InputError,
        match=r"pytorch can't run the file .*float\.onnx; choose from onnxruntime, openvino, .*, executorch, ncnn",
    ):
        open_runtime("pytorch", float_model.path)


@pytest.mark.parametrize(
    ("name", "target", "reason"),
    [
        (
            "litert",
            "tensorrt",
            "target tensorrt keeps sums in 32 bits, and LiteRT rounds every summand; choose py",
        ),
        ("litert", "openvino", "target openvino keeps sums in 32 bits"),
        ("executorch", "openvino", "target openvino keeps sums in 32 bits, and ExecuTorch rounds every summand"),
        ("tensorrt", "executorch", "activations of target executorch have zero points, and TensorRT has none"),
        (
            "tensorrt",
            "litert",
            "activations of target litert have zero points, and TensorRT has none; choose pyt",
        ),
    ],
)
def test_runtimes_that_do_not_fit_a_target_are_refused_with_the_reason(name, target, reason):
    with pytest.raises(InputError, match=reason):
        require_fit((name,), target)
    require_fit(("pytorch", "onnxruntime", "openvino"), target)
    require_fit(("litert", "executorch"), "onnxruntime")
    require_fit(("litert", "executorch"), "executorch")


@pytest.mark.parametrize(
    ("name", "target"), [("ncnn", "tensorrt"), ("ncnn", "litert"), ("onnxruntime", "ncnn"), ("tensorrt", "ncnn")]
)
def test_ncnn_has_integers_of_its_own(name, target):
    with pytest.raises(InputError, match=f"runtime {name} can't run .* {target}: ncnn has symmetric .* choose pytorch"):
        require_fit((name,), target)
    require_fit(("pytorch", "ncnn"), "ncnn")


def test_each_engine_reads_its_own_kind_of_file(tmp_path):
    with pytest.raises(InputError, match=r"openvino reads \.onnx files, and .*x\.tflite was given; choose from litert"):
        open_runtime("openvino", tmp_path / "x.tflite")
    with pytest.raises(
        InputError, match=r"litert reads \.tflite files, .*; choose from onnxruntime, openvino, tensorrt"
    ):
        open_runtime("litert", tmp_path / "x.onnx")


def test_nothing_heavy_is_imported_to_ask():
    code = (
        "import sys; from repquant.runtimes.available import installed; installed(); "
        "heavy = {'torch', 'onnx', 'onnxruntime', 'openvino', 'ai_edge_litert', 'torchao', 'ncnn'}; "
        "print(sorted(heavy & sys.modules.keys()))"
    )
    answer = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert answer.stdout.strip() == "[]"
