"""One quantization of the demo network on servers, phones and in browsers: all compute the simulation's integers."""

import functools
import http.server
import json
import re
import shutil
import subprocess
import threading
from html import unescape
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch
from PIL import Image

from repquant.data.builtin_set import BuiltinSet
from repquant.data.transforms import EvalTransform
from repquant.export.files import export_file
from repquant.graph.capture import capture
from repquant.models.checkpoints import load_model
from repquant.models.reparam import reparameterize
from repquant.models.zoo import BUILTIN_ARCH, BUILTIN_CLASSES, builtin_weights
from repquant.quantize import quantize
from repquant.runtimes.available import open_runtime

REPOSITORY = Path(__file__).parent.parent.parent
WEB = REPOSITORY / ".cache" / "web" / "node_modules" / "onnxruntime-web"
"""Where `make web` puts the package."""

needs_web = pytest.mark.skipif(
    shutil.which("node") is None or not WEB.is_dir(), reason="needs node and the package that `make web` installs"
)
TRANSFORM = EvalTransform(image_size=32, crop_ratio=1.0)
IMAGES = 400


@pytest.fixture(scope="module")
def pixels():
    source = BuiltinSet("val")
    return torch.stack([TRANSFORM(source.image(index)) for index in range(IMAGES)])


@pytest.fixture(scope="module")
def images(pixels):
    return TRANSFORM.normalize(pixels)


@pytest.fixture(scope="module")
def model():
    return reparameterize(load_model(builtin_weights(), BUILTIN_ARCH, BUILTIN_CLASSES).eval())


@pytest.fixture(scope="module")
def graph(model, images):
    return capture(model, images[:2])


@pytest.fixture(scope="module")
def int8(graph, images):
    return quantize(graph, [images[:64]], target="litert", rounding_images=0)


@pytest.fixture(scope="module")
def expected(int8, images):
    with torch.inference_mode():
        return int8(images).numpy()


@pytest.fixture(scope="module")
def onnx_file(int8, tmp_path_factory):
    return int8.save(tmp_path_factory.mktemp("web") / "int8.onnx")


def assert_same_integers(given, expected):
    """Logits that differ come from an integer that lies on a rounding border; the class stays."""
    assert (np.abs(given - expected) < 1e-4).all(1).mean() >= 0.98
    assert (given.argmax(1) == expected.argmax(1)).mean() >= 0.999


def test_litert(int8, images, expected, tmp_path):
    pytest.importorskip("ai_edge_litert", reason="pip install 'repquant[litert]'")
    runtime = open_runtime("litert", int8.save(tmp_path / "int8.tflite"), threads=1)
    assert_same_integers(runtime(images.numpy()), expected)


def test_executorch(int8, images, expected, tmp_path):
    pytest.importorskip("executorch.runtime", reason="pip install 'repquant[executorch]'")
    runtime = open_runtime("executorch", int8.save(tmp_path / "int8.pte"), threads=1)
    assert_same_integers(runtime(images.numpy()), expected)


def test_ncnn(graph, images, tmp_path):
    pytest.importorskip("ncnn", reason="pip install 'repquant[ncnn]'")
    symmetric = quantize(graph, [images[:64]], target="ncnn", rounding_images=0)
    with torch.inference_mode():
        wanted = symmetric(images).numpy()
    runtime = open_runtime("ncnn", symmetric.save(tmp_path / "int8.param"), threads=1)
    assert_same_integers(runtime(images.numpy()), wanted)


def test_the_file_for_browsers_in_onnx_runtime(onnx_file, images, expected):
    assert_same_integers(open_runtime("onnxruntime", onnx_file, threads=1)(images.numpy()), expected)


@needs_web
def test_onnx_runtime_web_in_node(onnx_file, images, expected, tmp_path):
    given, logits = tmp_path / "images.bin", tmp_path / "logits.bin"
    images.numpy().tofile(given)
    shape = ",".join(map(str, images.shape))
    script = Path(__file__).parent / "run_in_node.mjs"
    subprocess.run(["node", script, WEB, onnx_file, given, shape, logits], check=True, timeout=120)
    assert_same_integers(np.fromfile(logits, np.float32).reshape(expected.shape), expected)


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves a folder and says nothing."""

    extensions_map = MappingProxyType(http.server.SimpleHTTPRequestHandler.extensions_map | {".mjs": "text/javascript"})

    def log_message(self, *_):
        pass


@pytest.mark.slow
@needs_web
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_the_page_in_a_browser(graph, onnx_file, pixels, expected, tmp_path):
    site = tmp_path / "site"
    shutil.copytree(REPOSITORY / "examples" / "browser", site)
    shutil.copytree(
        WEB / "dist", site / "onnxruntime-web", ignore=lambda _, names: [n for n in names if "wasm" not in n]
    )
    shutil.copy(onnx_file, site / "int8.onnx")
    export_file(graph, site / "float.onnx")
    settings = {"side": 32, "mean": TRANSFORM.mean, "std": TRANSFORM.std, "classes": BuiltinSet.classes}
    (site / "settings.json").write_text(json.dumps(settings))
    Image.fromarray(pixels[0].permute(1, 2, 0).numpy()).save(site / "image.png")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = subprocess.run(
            [
                "chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
                "--virtual-time-budget=60000", "--dump-dom",
                f"http://127.0.0.1:{server.server_port}/index.html?image=image.png",
            ],
            capture_output=True, text=True, check=True, timeout=240,
        ).stdout  # fmt: skip
        server.shutdown()
    assert re.search(r'id="agreement"[^>]*>both say the same<', page), page
    logits = json.loads(unescape(re.search(r'id="int8" data-logits="([^"]*)"', page)[1]))
    np.testing.assert_allclose(logits, expected[0], rtol=0, atol=1e-3)
