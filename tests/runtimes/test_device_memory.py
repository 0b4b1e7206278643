# ruff: noqa: ARG002, N802, N815  # names and signatures are CUDA's
import ctypes
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from repquant.errors import InputError
from repquant.runtimes import device_memory
from repquant.runtimes.device_memory import CudaPythonMemory, TorchMemory, open_memory


class FakeCuda:
    """The calls of `cuda.bindings.runtime` that are used, on the CPU's memory."""

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)

    def __init__(self):
        self.blocks, self.freed, self.error = {}, [], 0

    def cudaGetDeviceCount(self):
        return 0, 1

    def cudaStreamCreate(self):
        return 0, 7

    def cudaStreamSynchronize(self, stream):
        assert stream == 7
        return (0,)

    def cudaMalloc(self, size):
        block = ctypes.create_string_buffer(size)
        self.blocks[ctypes.addressof(block)] = block
        return (self.error, ctypes.addressof(block))

    def cudaFree(self, address):
        self.freed.append(address)
        return (0,)

    def cudaMemcpy(self, target, source, size, kind):
        ctypes.memmove(target, source, size)
        return (0,)

    def cudaGetErrorString(self, status):
        return 0, b"out of memory"


@pytest.mark.parametrize("open_it", [lambda: TorchMemory("cpu"), lambda: CudaPythonMemory(FakeCuda())])
def test_what_is_uploaded_comes_back(open_it):
    memory = open_it()
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    buffer = memory.upload(array[:, ::-1])  # not contiguous
    at = (ctypes.c_float * 24).from_address(memory.address(buffer))
    np.testing.assert_array_equal(np.array(at).reshape(2, 3, 4), array[:, ::-1])
    at[0] = 100
    assert memory.download(buffer)[0, 0, 0] == 100
    assert memory.download(memory.allocate((5, 2))).shape == (5, 2)


def test_memory_is_freed_with_its_buffer():
    cuda = FakeCuda()
    memory = CudaPythonMemory(cuda)
    buffer = memory.allocate((3,))
    address = memory.address(buffer)
    del buffer
    assert cuda.freed == [address]


def test_memory_that_is_not_there():
    cuda = FakeCuda()
    memory = CudaPythonMemory(cuda)
    cuda.error = 2
    with pytest.raises(InputError, match="the GPU refuses: out of memory; use smaller batches"):
        memory.allocate((3,))


def test_cuda_python_is_taken_where_torch_has_no_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cuda = FakeCuda()
    package, bindings = ModuleType("cuda"), ModuleType("cuda.bindings")
    bindings.runtime = cuda
    monkeypatch.setitem(sys.modules, "cuda", package)
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    monkeypatch.setattr(device_memory, "find_spec", lambda _: object())
    assert isinstance(open_memory(), CudaPythonMemory)
    cuda.cudaGetDeviceCount = lambda: (100, 0)
    with pytest.raises(InputError, match="no NVIDIA GPU is reached"):
        open_memory()


def test_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="no NVIDIA GPU is reached; run on a machine that has one"):
        open_memory()
