"""The engine for TensorRT, against a stand-in that is made from the vendor's type stubs."""

import ast
import sys
from pathlib import Path

import numpy as np
import pytest

from fake_tensorrt import MAGIC, FakeTensorRT, onnx_of, stub_namespace
from repquant.errors import InputError
from repquant.runtimes import tensorrt as tensorrt_runtime
from repquant.runtimes.available import installed, open_runtime
from repquant.runtimes.device_memory import TorchMemory
from repquant.runtimes.interface import Runtime
from repquant.runtimes.tensorrt import TensorRtRuntime
from repquant.runtimes.tensorrt_build import BuildOptions, build_engine

SOURCES = sorted(Path(tensorrt_runtime.__file__).parent.glob("tensorrt*.py"))
REMOVED_IN_11 = {
    "EXPLICIT_BATCH", "INT8", "FP16", "BF16", "FP8", "INT4", "FP4", "OBEY_PRECISION_CONSTRAINTS",
    "PREFER_PRECISION_CONSTRAINTS", "DIRECT_IO", "int8_calibrator", "set_calibration_profile", "set_quantization_flag",
    "device_memory_size", "device_memory_size_v2", "platform_has_fast_int8", "platform_has_fast_fp16", "build_engine",
    "max_workspace_size", "execute_async_v2", "get_binding_index",
}  # fmt: skip


@pytest.fixture
def fake():
    return FakeTensorRT()


@pytest.fixture
def use(monkeypatch):
    """Install a stand-in as the module `tensorrt`, and the CPU's memory as the GPU's."""

    def install(fake, **settings):
        monkeypatch.setitem(sys.modules, "tensorrt", fake.module(**settings))
        monkeypatch.setattr(tensorrt_runtime, "open_memory", lambda: TorchMemory("cpu"))

    return install


@pytest.fixture
def engine_file(float_model, tmp_path):
    path = tmp_path / "float.engine"
    path.write_bytes(MAGIC + float_model.path.read_bytes())
    return path


def attributes_of_trt(path):
    """The names behind `trt.` in a file, with those behind them: Builder, BuilderFlag.VERSION_COMPATIBLE."""
    chains = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        while isinstance(node, ast.Attribute):
            names.insert(0, node.attr)
            node = node.value
        if isinstance(node, ast.Name) and node.id == "trt" and names:
            chains.add(tuple(names))
    return chains


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_every_name_is_in_the_stubs_and_none_was_removed(path):
    stubs = stub_namespace() | {"__version__": "10.13"}
    for first, *rest in attributes_of_trt(path):
        assert first in stubs, f"trt.{first}"
        value = stubs[first]
        for name in rest:
            assert hasattr(value, name), f"trt.{first}.{name}"
            value = getattr(value, name)
    used = {
        node.attr for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Attribute)
    }
    assert not used & REMOVED_IN_11


def test_the_walk_sees_a_name_that_is_not_there(tmp_path):
    (tmp_path / "wrong.py").write_text("import tensorrt as trt\nx = trt.BuilderFlag.INT9\n")
    assert ("BuilderFlag", "INT9") in attributes_of_trt(tmp_path / "wrong.py")
    assert not hasattr(stub_namespace()["BuilderFlag"], "INT9")


def test_an_engine_runs_any_number_of_images(fake, use, engine_file, float_model, images):
    use(fake)
    runtime: Runtime = open_runtime("tensorrt", engine_file)
    assert (runtime.name, runtime.version) == ("tensorrt", "10.13.0.35")
    np.testing.assert_allclose(runtime(images), float_model.reference(images), atol=1e-5)
    # The largest batch of the engine is 5, the smallest 2: the last part is filled up.
    assert [images for what, images in fake.asked if what == "run"] == [5, 5, 2]
    np.testing.assert_allclose(runtime(images[:1]), float_model.reference(images[:1]), atol=1e-5)
    assert fake.asked[-1] == ("run", 2)


def test_an_onnx_file_is_built_when_it_is_opened(fake, use, qdq_model, images):
    use(fake)
    np.testing.assert_array_equal(open_runtime("tensorrt", qdq_model.path)(images), qdq_model.reference(images))


def test_results_outlive_the_next_call(fake, use, engine_file, images):
    use(fake)
    runtime = open_runtime("tensorrt", engine_file)
    first = runtime(images[:4])
    kept = first.copy()
    runtime(images[4:8])
    np.testing.assert_array_equal(first, kept)


def test_the_time_of_each_layer_is_that_of_its_profiler(fake, use, engine_file, images):
    use(fake)
    runtime = TensorRtRuntime(engine_file)
    layers = runtime.profile(images[:4], runs=3)
    assert [(layer.name, layer.precision, layer.milliseconds) for layer in layers] == [
        ("Reformatting CopyNode for Input Tensor 0", "reformat", 0.5),
        ("conv + relu", "INT8", 1.5),
        ("pool", "FP16", 2.5),
        ("linear", "FP32", 3.5),
    ]
    assert fake.asked.count(("run", 4)) == 4


def test_other_image_size(fake, use, engine_file):
    use(fake)
    with pytest.raises(InputError, match="takes images of shape any x 3 x 8 x 8, not 2 x 3 x 16 x 8; choose the image"):
        open_runtime("tensorrt", engine_file)(np.zeros((2, 3, 16, 8), np.float32))


def test_build_is_strongly_typed_and_for_the_batches(fake, use, qdq_model):
    use(fake)
    built = build_engine(qdq_model.path, BuildOptions(batches=(1, 2, 4), workspace_mib=3))
    assert onnx_of(built.plan).graph.node
    assert (built.timing_cache, built.version) == (b"timings", "10.13.0.35")
    assert [(layer.name.split()[0], layer.kind) for layer in built.layers] == [
        ("Reformatting", "reformat"), ("conv", "INT8"), ("pool", "FP16"), ("linear", "FP32"),
    ]  # fmt: skip
    assert ("network", 1 << int(fake.stubs.NetworkDefinitionCreationFlag.STRONGLY_TYPED)) in fake.asked
    assert ("profile", "images", (1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8)) in fake.asked
    fake.config.set_memory_pool_limit.assert_called_once_with(fake.stubs.MemoryPoolType.WORKSPACE, 3 << 20)
    assert fake.config.profiling_verbosity is fake.stubs.ProfilingVerbosity.DETAILED
    fake.config.set_flag.assert_not_called()


def test_engines_for_other_machines(fake, use, qdq_model):
    use(fake)
    build_engine(qdq_model.path, BuildOptions(version_compatible=True, hardware_compatible=True))
    fake.config.set_flag.assert_called_once_with(fake.stubs.BuilderFlag.VERSION_COMPATIBLE)
    assert fake.config.hardware_compatibility_level is fake.stubs.HardwareCompatibilityLevel.AMPERE_PLUS


def test_a_release_without_the_flag_builds_too(fake, use, qdq_model):
    use(fake, version="11.4.0.1")
    del sys.modules["tensorrt"].NetworkDefinitionCreationFlag.STRONGLY_TYPED
    build_engine(qdq_model.path, BuildOptions())
    assert ("network", 0) in fake.asked


@pytest.mark.parametrize(("mismatch", "used"), [(False, [b"old"]), (True, [b"old", b""])])
def test_a_timing_cache_of_another_machine_is_left_out(fake, use, qdq_model, mismatch, used):
    fake.cache_mismatch = mismatch
    use(fake)
    build_engine(qdq_model.path, BuildOptions(), b"old")
    assert [content for what, content in (call[:2] for call in fake.asked) if what == "cache"] == used


def test_a_fixed_batch_has_no_profile(fake, use, qdq_model, tmp_path):
    import onnx

    model = onnx.load(qdq_model.path)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    onnx.save(model, tmp_path / "fixed.onnx")
    use(fake)
    runtime = open_runtime("tensorrt", tmp_path / "fixed.onnx")
    assert not any(what == "profile" for what, *_ in fake.asked)
    images = np.ones((3, 3, 8, 8), np.float32)
    np.testing.assert_array_equal(runtime(images), qdq_model.reference(images))
    assert fake.asked[-1] == ("run", 4)


def test_what_the_parser_refuses_is_told_with_its_nodes(fake, use, qdq_model):
    fake.parse_errors = [("DequantizeLinear", "stem/bias", "only activation types"), ("Foo", "head/Foo", "no importer")]
    use(fake)
    message = (
        r"parser refuses .*qdq\.onnx: DequantizeLinear stem/bias: only activation types; Foo head/Foo: no importer; "
        r"check the file for the target tensorrt: that says what to do"
    )
    with pytest.raises(InputError, match=message):
        build_engine(qdq_model.path, BuildOptions())


@pytest.mark.parametrize(
    ("fails", "message"),
    [
        ({"gpu": "CUDA initialization failure with error: 100"}, "no GPU that it can use: CUDA initialization failure"),
        ({"build": "Internal Error: out of memory"}, "can't build .*out of memory; lower `workspace_mib` or the"),
        ({"build": "no implementation for node"}, "can't build .*no implementation for node; see what it says"),
        ({"load": "something is wrong"}, "can't build an engine .*something is wrong"),
    ],
)
def test_a_build_that_fails_says_why(fake, use, qdq_model, fails, message):
    fake.fails = fails
    use(fake)
    with pytest.raises(InputError, match=message):
        build_engine(qdq_model.path, BuildOptions())


@pytest.mark.parametrize(
    ("fails", "message"),
    [
        ({"load": "expecting library version 10.13 got 10.3"}, "10.13.0.35 does not load .*expecting library version"),
        ({"load": "generated on an incompatible device"}, "incompatible device; engines run on the release .* engine`"),
        ({"context": "out of memory"}, "can't run .*out of memory; free memory of the GPU"),
        ({"type": ""}, "has images in another type than float32"),
    ],
)
def test_an_engine_that_can_not_run_says_why(fake, use, engine_file, fails, message):
    fake.fails = fails
    use(fake)
    with pytest.raises(InputError, match=message):
        open_runtime("tensorrt", engine_file)


def test_a_run_that_fails_says_why(fake, use, engine_file, images):
    fake.fails = {"run": "illegal memory access"}
    use(fake)
    with pytest.raises(InputError, match=r"can't run .*illegal memory access"):
        open_runtime("tensorrt", engine_file)(images)


def test_a_float_file_is_built_only_when_that_is_meant(fake, use, float_model):
    use(fake)
    with pytest.raises(InputError, match="holds no quantizers, and TensorRT would build a float engine"):
        build_engine(float_model.path, BuildOptions())
    assert build_engine(float_model.path, BuildOptions(allow_float=True)).plan


def test_a_tensorrt_that_is_too_old(fake, use, qdq_model, engine_file):
    use(fake, version="8.6.1")
    message = "TensorRT 8.6.1 is installed, and 10.0 or newer is needed; for 8.6 write .*`stored_weights='float'`"
    for run in (lambda: build_engine(qdq_model.path, BuildOptions()), lambda: open_runtime("tensorrt", engine_file)):
        with pytest.raises(InputError, match=message):
            run()


def test_without_tensorrt(qdq_model, engine_file):
    assert "tensorrt" not in installed()  # its stubs are, and are a folder without code
    with pytest.raises(InputError, match="runtime tensorrt is not installed; run pip install 'tensorrt'"):
        open_runtime("tensorrt", engine_file)
    for run in (lambda: build_engine(qdq_model.path, BuildOptions()), lambda: TensorRtRuntime(engine_file)):
        with pytest.raises(InputError, match="TensorRT is not installed; run pip install tensorrt"):
            run()


@pytest.mark.parametrize("batches", [(16, 1, 64), (1, 64, 16), (0, 1, 2)])
def test_batches_in_the_wrong_order(batches):
    with pytest.raises(InputError, match="the best and the largest, in this order, from 1 to 65,536"):
        BuildOptions(batches=batches)


def test_no_workspace():
    with pytest.raises(InputError, match="a workspace of 0 MiB was given; give at least 1"):
        BuildOptions(workspace_mib=0)
