"""repquant: re-parameterized classifiers from training to a verified INT8 model.

The names below are imported when they are first used: `import repquant` imports nothing heavy.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from repquant.analyze import analyze as analyze
    from repquant.benchmark import Benchmark as Benchmark
    from repquant.benchmark import benchmark as benchmark
    from repquant.check import check as check
    from repquant.finish_qat import finish_qat as finish_qat
    from repquant.load import load as load
    from repquant.methods.method import PtqMethod as PtqMethod
    from repquant.methods.method import ReconstructionOptions as ReconstructionOptions
    from repquant.prepare_qat import QatOptions as QatOptions
    from repquant.prepare_qat import prepare_qat as prepare_qat
    from repquant.prove import Proof as Proof
    from repquant.prove import prove as prove
    from repquant.quantize import Quantized as Quantized
    from repquant.quantize import quantize as quantize
    from repquant.read_onnx import read_onnx as read_onnx
    from repquant.reparameterize import reparameterize as reparameterize
    from repquant.search import Found as Found
    from repquant.search import search as search
    from repquant.targets.target import Target as Target
    from repquant.targets.target import resolve_target as resolve_target

__version__ = "0.1.0"

_HOMES = {
    "Benchmark": "repquant.benchmark",
    "Found": "repquant.search",
    "Proof": "repquant.prove",
    "PtqMethod": "repquant.methods.method",
    "QatOptions": "repquant.prepare_qat",
    "Quantized": "repquant.quantize",
    "ReconstructionOptions": "repquant.methods.method",
    "Target": "repquant.targets.target",
    "analyze": "repquant.analyze",
    "benchmark": "repquant.benchmark",
    "check": "repquant.check",
    "finish_qat": "repquant.finish_qat",
    "load": "repquant.load",
    "prepare_qat": "repquant.prepare_qat",
    "prove": "repquant.prove",
    "quantize": "repquant.quantize",
    "read_onnx": "repquant.read_onnx",
    "reparameterize": "repquant.reparameterize",
    "resolve_target": "repquant.targets.target",
    "search": "repquant.search",
}


__all__ = ["__version__", *_HOMES]


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


class _Package(ModuleType):
    """A package in which a verb of the library keeps its name, although the file that it lives in has the same."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _HOMES and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
