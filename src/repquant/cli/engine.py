"""Build a TensorRT engine from an ONNX file, and tell which of its layers run in integers.

What the file quantizes runs in INT8, and the type of its scales decides what the rest runs in. Engines run on the
release of TensorRT and the kind of GPU that they were built on. For another machine the equal trtexec command is
printed; TensorRT 10.0 or newer is needed here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from repquant.cli.console import finish, say, show_configuration
from repquant.cli.options import argument
from repquant.errors import InputError
from repquant.option_ranges import Numbers, option

EXAMPLE = "repquant engine runs/a0/mse.onnx --output a0.engine"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `repquant engine`."""

    file: str = argument("ONNX file of the target tensorrt")
    output: str = option("file to write, .engine or .plan")
    overwrite: bool = option("replace the output file if it exists", False)
    batch: str = option("smallest, best and largest number of images, with commas", "1,16,64")
    workspace: int = option(
        "memory of the GPU for intermediate results, in MiB", 1024, Numbers(1, 2**20), argument="workspace_mib"
    )
    timing_cache: str = option("file that makes later builds faster; default: beside the output", "")
    version_compatible: bool = option("an engine for later releases of the same major version, too", False)
    hardware_compatible: bool = option("an engine for other GPUs from Ampere on, too", False)
    float: bool = option(
        "take a file without quantizers, for a float engine to compare with", False, argument="allow_float"
    )


def run(options: Options) -> None:
    """Run the verb."""
    show_configuration("engine", options)
    from repquant.atomic import replace_file
    from repquant.cli.outputs import output_file
    from repquant.runtimes.tensorrt_build import BuildOptions, build_engine, images_of, trtexec_line
    from repquant.runtimes.tensorrt_layers import count_kinds
    from repquant.targets.onnx_graph import read_graph

    path = Path(options.file)
    build = BuildOptions(
        batches=_batches(options.batch),
        workspace_mib=options.workspace,
        version_compatible=options.version_compatible,
        hardware_compatible=options.hardware_compatible,
        allow_float=options.float,
    )
    images = images_of(path, read_graph(path))
    output = output_file(options, (".engine", ".plan"))
    cache = Path(options.timing_cache or f"{output}.timing")
    line = trtexec_line(path, output, build, images)
    say(f"the same with TensorRT's own program: {line}")
    built = build_engine(path, build, cache.read_bytes() if cache.is_file() else b"")
    for file, content in ((output, built.plan), (cache, built.timing_cache)):
        with replace_file(file) as temporary:
            temporary.write_bytes(content)
    for layer in built.layers:
        say(f"{layer.kind:>9}  {layer.name}")
    finish(
        {
            "output": options.output,
            "file_bytes": len(built.plan),
            "tensorrt": built.version,
            "timing_cache": str(cache),
            "layers": count_kinds(built.layers),
            "trtexec": line,
        }
    )


def _batches(value: str) -> tuple[int, int, int]:
    try:
        smallest, best, largest = (int(part) for part in value.split(","))
    except ValueError as error:
        raise InputError(f"--batch {value} was given; give three numbers with commas, for example 1,16,64") from error
    return smallest, best, largest
