import subprocess
import sys
from types import SimpleNamespace

import pytest

from repquant.errors import InputError
from repquant.runtimes import available
from repquant.runtimes.available import installed, open_runtime, require


def test_all_engines_are_installed_for_the_tests():
    assert installed() == ("pytorch", "onnxruntime", "openvino")
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
        lambda name: SimpleNamespace(origin=None if name in ("openvino", "tensorrt") else "a file"),
    )
    assert installed() == ("pytorch", "onnxruntime")
    with pytest.raises(InputError, match=r"pip install 'repquant\[openvino\]', or choose from pytorch, onnxruntime"):
        require("openvino")


def test_pytorch_runs_no_files(float_model):
    with pytest.raises(
        InputError, match=r"pytorch can't run the file .*float\.onnx; choose from onnxruntime, openvino, tensorrt"
    ):
        open_runtime("pytorch", float_model.path)


def test_nothing_heavy_is_imported_to_ask():
    code = (
        "import sys; from repquant.runtimes.available import installed; installed(); "
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'openvino'} & sys.modules.keys()))"
    )
    answer = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert answer.stdout.strip() == "[]"
