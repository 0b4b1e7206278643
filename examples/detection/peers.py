"""Other quantizers on the same float file and images, and their files in ONNX Runtime as they are."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor


class _Reader(quantization.CalibrationDataReader):
    def __init__(self, name: str, batches: list[Tensor]) -> None:
        self._feeds: Iterator[dict[str, Any]] = ({name: batch.numpy()} for batch in batches)

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)


def with_onnxruntime(float_file: Path, path: Path, batches: list[Tensor]) -> None:
    """Write what `quantize_static` makes: ranges from the least to the largest value, scales for each channel."""
    prepared = path.with_suffix(".prepared.onnx")
    quant_pre_process(float_file, prepared, skip_symbolic_shape=True)
    quantization.quantize_static(
        prepared,
        path,
        _Reader(_input(prepared), batches),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        calibrate_method=quantization.CalibrationMethod.MinMax,
    )


def with_nncf(float_file: Path, path: Path, batches: list[Tensor]) -> None:
    """Write what NNCF makes with its defaults."""
    import nncf
    import onnx

    name = _input(float_file)
    data = nncf.Dataset([{name: batch.numpy()} for batch in batches])
    onnx.save(nncf.quantize(onnx.load(float_file), data, subset_size=len(batches)), path)


def running(path: Path) -> Callable[[Tensor], Any]:
    """Return a file in ONNX Runtime with its default settings, as a network."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def call(images: Tensor) -> Any:
        arrays = session.run(names, {session.get_inputs()[0].name: images.numpy()})
        tensors = [torch.from_numpy(array) for array in arrays]
        return tensors[0] if len(names) == 1 else dict(zip(names, tensors, strict=True))

    return call


def _input(path: Path) -> str:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).get_inputs()[0].name
