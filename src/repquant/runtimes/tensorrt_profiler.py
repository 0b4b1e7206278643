"""What TensorRT's profiler tells of a run: the milliseconds of each layer."""

from typing import Any


def layer_profiler() -> Any:
    """Return a `trt.IProfiler` that keeps name and milliseconds of each layer in `layers`, in the order of a run."""
    import tensorrt as trt

    class Layers(trt.IProfiler):
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.layers: list[tuple[str, float]] = []

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.layers.append((layer_name, ms))

    return Layers()
