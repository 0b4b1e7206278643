"""From an ONNX file to a TensorRT engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from repquant.errors import InputError
from repquant.runtimes.tensorrt_layers import EngineLayer, read_layers
from repquant.runtimes.tensorrt_log import Messages, require_tensorrt
from repquant.targets.onnx_graph import OnnxGraph, read_graph

if TYPE_CHECKING:
    import tensorrt as trt

Batches = tuple[int, int, int]

_MOST_IMAGES = 65536


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """How an engine is built.

    Args:
        batches: the smallest, the best and the largest number of images; kernels are chosen for the best.
        workspace_mib: memory of the GPU that kernels may use for intermediate results, in MiB.
        version_compatible: the engine also loads in later releases of the same major version.
        hardware_compatible: the engine also runs on other GPUs, from Ampere on.
        allow_float: take a file without quantizers too, for a float engine to compare with.

    Raises:
        InputError: batches that are not in order, or no workspace.
    """

    batches: Batches = (1, 16, 64)
    workspace_mib: int = 1024
    version_compatible: bool = False
    hardware_compatible: bool = False
    allow_float: bool = False

    def __post_init__(self) -> None:
        smallest, best, largest = self.batches
        if not 1 <= smallest <= best <= largest <= _MOST_IMAGES:
            raise InputError(
                f"batches {smallest}, {best}, {largest} were given; give the smallest, the best and the largest, in "
                f"this order, from 1 to {_MOST_IMAGES:,}"
            )
        if self.workspace_mib < 1:
            raise InputError(f"a workspace of {self.workspace_mib} MiB was given; give at least 1")


@dataclass(frozen=True)
class Images:
    """What a model takes: the input's name, its batch (None where it varies), and its other sizes."""

    name: str
    batch: int | None
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class BuiltEngine:
    """An engine and what is known about it.

    Attributes:
        plan: the engine, serialized.
        layers: as its inspector tells of them.
        timing_cache: what later builds on the same GPU and release need not time again.
        version: of TensorRT.
    """

    plan: bytes
    layers: tuple[EngineLayer, ...]
    timing_cache: bytes
    version: str


def build_engine(path: Path, options: BuildOptions, timing_cache: bytes = b"") -> BuiltEngine:
    """Build a strongly typed engine: what the file quantizes runs in integers, and nothing else does.

    Args:
        path: ONNX file with one input (N, ...) of which only N may vary.
        options: how.
        timing_cache: of an earlier build; one of another GPU or release is ignored.

    Raises:
        InputError: no TensorRT, or one that is too old; no GPU; a file that is no ONNX, that is not quantized, or has
            sizes besides the batch that vary; or whatever TensorRT refuses, in its words.
    """
    graph = read_graph(path)
    images = images_of(path, graph)
    if not (graph.is_quantized or options.allow_float):
        raise InputError(
            f"{path} holds no quantizers, and TensorRT would build a float engine; give an INT8 file, or allow it "
            "(`allow_float=True`)"
        )
    version = require_tensorrt()
    import tensorrt as trt

    messages = Messages()
    try:
        builder = trt.Builder(messages.logger)
    except (TypeError, RuntimeError) as error:  # the constructor has no other way to say it
        raise InputError(f"TensorRT finds no GPU that it can use: {messages.reason()}") from error
    network = builder.create_network(_strongly_typed())
    parser = trt.OnnxParser(network, messages.logger)
    if not parser.parse_from_file(str(path)):
        raise _not_parsed(path, parser)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if images.batch is None:
        profile = builder.create_optimization_profile()
        smallest, best, largest = (trt.Dims([batch, *images.sizes]) for batch in options.batches)
        profile.set_shape(images.name, smallest, best, largest)
        config.add_optimization_profile(profile)
    _use_timing_cache(config, timing_cache)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _not_built(path, messages.reason())
    content = bytes(plan)
    return BuiltEngine(
        plan=content,
        layers=read_layers(_inspect_plan(messages, path, content)),
        timing_cache=bytes(config.get_timing_cache().serialize()),
        version=version,
    )


def images_of(path: Path, graph: OnnxGraph) -> Images:
    """Return what the model at `path` takes.

    Raises:
        InputError: more than one input, or another size than the batch that varies.
    """
    inputs = [info.name for info in graph.model.graph.input if info.name not in graph.constants]
    if len(inputs) != 1:
        raise InputError(f"model {path} has {len(inputs)} inputs; one is needed (images)")
    batch, *sizes = graph.shapes.get(inputs[0], (None,))
    fixed = tuple(size for size in sizes if isinstance(size, int))
    if not sizes or len(fixed) < len(sizes):
        shape = " x ".join(str(size or "any") for size in (batch, *sizes))
        raise InputError(
            f"model {path} takes images of shape {shape}: sizes besides the batch vary; export it with fixed ones"
        )
    return Images(name=inputs[0], batch=batch if isinstance(batch, int) else None, sizes=fixed)


def trtexec_line(path: Path, output: Path, options: BuildOptions, images: Images) -> str:
    """Return the command that builds the same engine with TensorRT's own program."""
    parts = ["trtexec", f"--onnx={path}", f"--saveEngine={output}", "--stronglyTyped"]
    if images.batch is None:
        sizes = "x".join(map(str, images.sizes))
        kinds = zip(("min", "opt", "max"), options.batches, strict=True)
        parts += [f"--{kind}Shapes={images.name}:{batch}x{sizes}" for kind, batch in kinds]
    parts += [f"--memPoolSize=workspace:{options.workspace_mib}M", "--profilingVerbosity=detailed"]
    parts += ["--versionCompatible"] if options.version_compatible else []
    parts += ["--hardwareCompatibilityLevel=ampere+"] if options.hardware_compatible else []
    return " ".join(parts)


def _strongly_typed() -> int:
    """Return the flags of a strongly typed network; a release that knows no other kind may have no flag for it."""
    import tensorrt as trt

    flags = trt.NetworkDefinitionCreationFlag
    return 1 << int(flags.STRONGLY_TYPED) if hasattr(flags, "STRONGLY_TYPED") else 0


def _use_timing_cache(config: trt.IBuilderConfig, content: bytes) -> None:
    if not (content and config.set_timing_cache(config.create_timing_cache(content), ignore_mismatch=False)):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def _not_parsed(path: Path, parser: trt.OnnxParser) -> InputError:
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    told = "; ".join(f"{error.node_operator()} {error.node_name()}: {error.desc()}" for error in errors)
    return InputError(
        f"TensorRT's parser refuses {path}: {told or 'it gives no reason'}; check the file "
        "for the target tensorrt: that says what to do"
    )


def _not_built(path: Path, reason: str) -> InputError:
    remedy = "see what it says"
    if "memory" in reason.lower():
        remedy = "lower `workspace_mib` or the largest batch, or free memory of the GPU"
    return InputError(f"TensorRT can't build an engine from {path}: {reason}; {remedy}")


def _inspect_plan(messages: Messages, path: Path, plan: bytes) -> str:
    import tensorrt as trt

    engine = trt.Runtime(messages.logger).deserialize_cuda_engine(plan)
    if engine is None:
        raise _not_built(path, messages.reason())
    return inspect(engine)


def inspect(engine: trt.ICudaEngine) -> str:
    """Return what an engine's inspector tells of its layers, in JSON."""
    import tensorrt as trt

    return engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
