# ruff: noqa: ARG002, ARG005  # signatures are the vendor's
"""A stand-in for TensorRT, made from its type stubs: it has what they have, and nothing else.

Classes, enumerations and signatures come from `tensorrt-stubs`. Builder, parser and runtime are autospecced from them
and do what their documentation says, on the CPU: an engine is the ONNX file itself, and runs in ONNX Runtime.
"""

import ast
import ctypes
import json
import re
import typing
from dataclasses import dataclass, field
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.metadata import distribution
from pathlib import Path
from types import CodeType, ModuleType, SimpleNamespace
from unittest.mock import create_autospec

import numpy as np
import onnx
import onnxruntime
import typing_extensions

MAGIC = b"ftrt"
LAYERS = [
    {"Name": "Reformatting CopyNode for Input Tensor 0", "LayerType": "Reformat", "Inputs": [], "Outputs": []},
    {
        "Name": "conv + relu",
        "LayerType": "CaskConvolution",
        "Inputs": [{"Name": "x", "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}],
        "Outputs": [{"Name": "y", "Format/Datatype": "Int8"}],
    },
    {"Name": "pool", "LayerType": "Pooling", "Inputs": [{"DataType": "Half", "Format": "Row major"}], "Outputs": []},
    {"Name": "linear", "LayerType": "gemm", "Inputs": [{"Format/Datatype": "Row major linear FP32"}], "Outputs": []},
]


def stub_namespace() -> dict[str, typing.Any]:
    """Execute the stubs, class by class, each when its bases are known."""
    codes, numbers = _compiled_stubs()
    namespace = {"typing": typing, "typing_extensions": typing_extensions, "__name__": "tensorrt"}
    waiting = codes
    while waiting:
        left = []
        for code in waiting:
            try:
                exec(code, namespace)
            except NameError:
                left.append(code)
        assert len(left) < len(waiting), "a base that the stubs don't have"
        waiting = left
    for value in list(namespace.values()):
        if isinstance(value, type):
            _fill(value, numbers)
    return namespace


@cache
def _compiled_stubs() -> tuple[list[CodeType], dict[tuple[str, str], int]]:
    """Return each class and function of the stubs, and the numbers of enumerations, which stand in comments."""
    path = Path(str(distribution("tensorrt-stubs").locate_file("tensorrt_bindings/tensorrt.pyi")))
    text = path.read_text(encoding="utf-8")
    future = ast.ImportFrom(module="__future__", names=[ast.alias(name="annotations")], level=0)
    codes = [
        compile(ast.fix_missing_locations(ast.Module(body=[future, node], type_ignores=[])), str(path), "exec")
        for node in ast.parse(text).body
        if isinstance(node, ast.ClassDef | ast.FunctionDef)
    ]
    numbers = {(kind, name): int(number) for kind, name, number in re.findall(r"<(\w+)\.(\w+): (\d+)>", text)}
    return codes, numbers


def _fill(kind: type, numbers: dict[tuple[str, str], int]) -> None:
    """Give annotated attributes a value: a member of its own for each name of an enumeration, else None."""
    for inner in list(vars(kind).values()):
        if isinstance(inner, type):
            _fill(inner, numbers)
    annotations = vars(kind).get("__annotations__", {})
    for name in annotations:
        if name not in vars(kind):
            number = numbers.get((kind.__name__, name))
            setattr(kind, name, None if number is None else _member(kind, name, number))


def _member(kind: type, name: str, number: int) -> typing.Any:
    behavior = {
        "__eq__": lambda self, other: self is other,
        "__ne__": lambda self, other: self is not other,
        "__hash__": lambda self: number,
        "__int__": lambda self: number,
        "__index__": lambda self: number,
        "__str__": lambda self: name,
        "__repr__": lambda self: name,
    }
    return object.__new__(type(name, (kind,), behavior))


class Dims(tuple):
    """Sizes, as tuples: the stubs have no code."""


@dataclass
class FakeTensorRT:
    """What happens, and what was asked for.

    Attributes:
        fails: what fails, and with which message: "gpu", "build", "load", "context", "run".
        parse_errors: (operator, node, message) each.
        cache_mismatch: a timing cache with content is of another GPU.
        asked: calls with their arguments, in order.
    """

    fails: dict[str, str] = field(default_factory=dict)
    parse_errors: list[tuple[str, str, str]] = field(default_factory=list)
    cache_mismatch: bool = False
    asked: list[tuple] = field(default_factory=list)

    def module(self, version: str = "10.13.0.35") -> ModuleType:
        module = ModuleType("tensorrt")
        module.__dict__.update(stub_namespace())
        module.__spec__ = ModuleSpec("tensorrt", None, origin="fake")
        module.__version__ = version
        self.stubs = SimpleNamespace(**{name: value for name, value in vars(module).items() if isinstance(value, type)})
        self.loggers = []
        module.Dims = Dims
        module.Builder = self._builder
        module.OnnxParser = self._parser
        module.Runtime = self._runtime
        return module

    def _log(self, logger, message):
        logger.log(self.stubs.ILogger.Severity.INFO, "this is said all the time")
        logger.log(self.stubs.ILogger.Severity.ERROR, message)

    def _spec(self, name):
        return create_autospec(getattr(self.stubs, name), instance=True, spec_set=True)

    def _builder(self, logger):
        assert isinstance(logger, self.stubs.ILogger)
        if "gpu" in self.fails:
            self._log(logger, self.fails["gpu"])
            raise TypeError("pybind11::init(): factory function returned nullptr")
        builder, network, config = (self._spec(name) for name in ("Builder", "INetworkDefinition", "IBuilderConfig"))
        profile, cache = self._spec("IOptimizationProfile"), self._spec("ITimingCache")
        self.config, self.network = config, network
        cache.serialize.return_value = b"timings"
        config.create_timing_cache.return_value = cache
        config.get_timing_cache.return_value = cache
        config.create_timing_cache.side_effect = lambda content: self.asked.append(("cache", content)) or cache
        config.set_timing_cache.side_effect = lambda cache, ignore_mismatch: (
            not (self.cache_mismatch and self.asked[-1] != ("cache", b""))
        )
        profile.set_shape.side_effect = lambda name, *sizes: self.asked.append(("profile", name, *sizes))
        builder.create_optimization_profile.return_value = profile
        builder.create_network.side_effect = lambda flags: self.asked.append(("network", flags)) or network
        builder.create_builder_config.return_value = config

        def build(network, config):
            if "build" in self.fails:
                self._log(logger, self.fails["build"])
                return None
            return MAGIC + self.content  # in place of IHostMemory, which bytes() reads as a buffer

        builder.build_serialized_network.side_effect = build
        return builder

    def _parser(self, network, logger):
        assert network is self.network
        parser = self._spec("OnnxParser")

        def parse(path):
            self.content = Path(path).read_bytes()
            return not self.parse_errors

        def error(index):
            told = self._spec("ParserError")
            told.node_operator.return_value, told.node_name.return_value, told.desc.return_value = self.parse_errors[
                index
            ]
            return told

        parser.parse_from_file.side_effect = parse
        parser.get_error.side_effect = error
        parser.num_errors = len(self.parse_errors)
        return parser

    def _runtime(self, logger):
        runtime = self._spec("Runtime")

        def deserialize(plan):
            if "load" in self.fails:
                self._log(logger, self.fails["load"])
                return None
            return self._engine(bytes(plan)[len(MAGIC) :], logger)

        runtime.deserialize_cuda_engine.side_effect = deserialize
        return runtime

    def _engine(self, content, logger):
        engine, context, inspector = (
            self._spec(name) for name in ("ICudaEngine", "IExecutionContext", "EngineInspector")
        )
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        given, result = session.get_inputs()[0], session.get_outputs()[0]
        sizes = [size if isinstance(size, int) else -1 for size in given.shape]
        modes = {given.name: self.stubs.TensorIOMode.INPUT, result.name: self.stubs.TensorIOMode.OUTPUT}
        engine.num_io_tensors = 2
        engine.get_tensor_name.side_effect = lambda index: [given.name, result.name][index]
        engine.get_tensor_mode.side_effect = modes.__getitem__
        kind = self.stubs.DataType.HALF if "type" in self.fails else self.stubs.DataType.FLOAT
        engine.get_tensor_dtype.side_effect = lambda name: kind
        engine.get_tensor_shape.side_effect = lambda name: Dims(sizes)
        engine.get_tensor_profile_shape.side_effect = lambda name, index: [
            Dims([batch, *sizes[1:]]) for batch in (2, 4, 5)
        ]
        inspector.get_engine_information.side_effect = lambda form: json.dumps({"Layers": LAYERS})
        engine.create_engine_inspector.return_value = inspector
        shapes, addresses = {}, {}
        context.profiler = None

        def run(stream):
            if "run" in self.fails:
                self._log(logger, self.fails["run"])
                return False
            images = _at(addresses[given.name], shapes[given.name])
            self.asked.append(("run", len(images)))
            (logits,) = session.run(None, {given.name: images})
            _at(addresses[result.name], logits.shape)[:] = logits
            if context.profiler is not None:
                for number, layer in enumerate(LAYERS):
                    context.profiler.report_layer_time(layer["Name"], number + 0.5)
            return True

        context.set_input_shape.side_effect = lambda name, shape: shapes.update({name: shape}) is None
        context.get_tensor_shape.side_effect = lambda name: Dims([shapes[given.name][0], result.shape[1]])
        context.set_tensor_address.side_effect = lambda name, memory: addresses.update({name: memory}) is None
        context.execute_async_v3.side_effect = run
        if "context" in self.fails:
            self._log(logger, self.fails["context"])
        engine.create_execution_context.return_value = None if "context" in self.fails else context
        return engine


def _at(address, shape):
    count = int(np.prod(shape))
    return np.ctypeslib.as_array((ctypes.c_float * count).from_address(address)).reshape(shape)


def onnx_of(plan: bytes) -> onnx.ModelProto:
    return onnx.ModelProto.FromString(plan[len(MAGIC) :])
