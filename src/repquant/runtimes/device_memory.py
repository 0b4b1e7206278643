"""Memory of a GPU and the stream that an engine runs on, from torch or from cuda-python."""

from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from repquant.errors import InputError


class DeviceMemory(Protocol):
    """Buffers on one GPU. What is asked for on a stream is done in order; `download` waits for it."""

    @property
    def stream(self) -> int:
        """Handle of the stream."""
        ...

    def upload(self, array: NDArray[np.float32]) -> Any:
        """Return a buffer with a copy of the array."""
        ...

    def allocate(self, shape: tuple[int, ...]) -> Any:
        """Return a buffer for as many float32."""
        ...

    def address(self, buffer: Any) -> int:
        """Return where a buffer lies on the device."""
        ...

    def download(self, buffer: Any) -> NDArray[np.float32]:
        """Return what is in the buffer when all that was asked for is done."""
        ...


class TorchMemory:
    """Tensors of torch.

    Args:
        device: "cuda", or "cpu" for tests of the code around it.
    """

    def __init__(self, device: str = "cuda") -> None:
        self._device = torch.device(device)
        self._stream = torch.cuda.Stream() if self._device.type == "cuda" else None

    @property
    def stream(self) -> int:
        """Handle of the stream; 0 on the CPU, which has none."""
        return 0 if self._stream is None else int(self._stream.cuda_stream)

    def upload(self, array: NDArray[np.float32]) -> torch.Tensor:
        """Return a tensor on the device."""
        with torch.cuda.stream(self._stream):
            return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)

    def allocate(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Return an empty tensor on the device."""
        with torch.cuda.stream(self._stream):
            return torch.empty(shape, dtype=torch.float32, device=self._device)

    def address(self, buffer: torch.Tensor) -> int:
        """Return the tensor's address."""
        return buffer.data_ptr()

    def download(self, buffer: torch.Tensor) -> NDArray[np.float32]:
        """Wait for the stream and return the tensor's values."""
        with torch.cuda.stream(self._stream):
            values = buffer.cpu()
        if self._stream is not None:
            self._stream.synchronize()
        return np.asarray(values.numpy())


class CudaPythonMemory:
    """Memory of cuda-python (12.8 or newer), for machines whose torch has no CUDA.

    Args:
        runtime: the module `cuda.bindings.runtime`.
    """

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime
        (self._stream,) = self._done(runtime.cudaStreamCreate())

    @property
    def stream(self) -> int:
        """Handle of the stream."""
        return int(self._stream)

    def upload(self, array: NDArray[np.float32]) -> "_Allocation":
        """Return a buffer with a copy of the array; the copy is complete."""
        array = np.ascontiguousarray(array)
        buffer = self.allocate(array.shape)
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._done(self._runtime.cudaMemcpy(buffer.address, array.ctypes.data, array.nbytes, kind))
        return buffer

    def allocate(self, shape: tuple[int, ...]) -> "_Allocation":
        """Return a buffer that is freed with the object."""
        (address,) = self._done(self._runtime.cudaMalloc(4 * int(np.prod(shape))))
        return _Allocation(self._runtime, int(address), shape)

    def address(self, buffer: "_Allocation") -> int:
        """Return where the buffer lies."""
        return buffer.address

    def download(self, buffer: "_Allocation") -> NDArray[np.float32]:
        """Wait for the stream and return a copy of the buffer."""
        self._done(self._runtime.cudaStreamSynchronize(self._stream))
        values = np.empty(buffer.shape, np.float32)
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._done(self._runtime.cudaMemcpy(values.ctypes.data, buffer.address, values.nbytes, kind))
        return values

    def _done(self, result: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return what a call gave besides its status."""
        status, *values = result
        if int(status) != 0:
            _, text = self._runtime.cudaGetErrorString(status)
            message = text.decode() if isinstance(text, bytes) else str(text)
            raise InputError(f"the GPU refuses: {message}; use smaller batches, or free its memory")
        return tuple(values)


class _Allocation:
    def __init__(self, runtime: Any, address: int, shape: tuple[int, ...]) -> None:
        self._runtime = runtime
        self.address = address
        self.shape = shape

    def __del__(self) -> None:
        self._runtime.cudaFree(self.address)


def open_memory() -> DeviceMemory:
    """Return memory of the GPU that is there.

    Raises:
        InputError: no GPU, or nothing that reaches it; says what to install.
    """
    if torch.cuda.is_available():
        return TorchMemory()
    try:
        has_bindings = find_spec("cuda.bindings.runtime") is not None
    except ModuleNotFoundError:  # of the package around it
        has_bindings = False
    if has_bindings:
        from cuda.bindings import runtime

        status, count = runtime.cudaGetDeviceCount()
        if int(status) == 0 and count:
            return CudaPythonMemory(runtime)
    raise InputError(
        "no NVIDIA GPU is reached; run on a machine that has one, with a torch that is built for CUDA or with "
        "pip install cuda-python"
    )
