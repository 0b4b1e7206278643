"""What the command line can do: its verbs, in the order of the work, and the options of each."""

import importlib
from types import ModuleType

VERBS = {
    "demo": "the whole path on data and weights that ship with the package",
    "convert": "re-parameterize a checkpoint: branches in, one convolution a block out",
    "quantize": "to INT8 with at most the loss that you allow: the one command for a result",
    "ptq": "quantize after training, export, and measure on the runtimes",
    "report": "a page about runs: what was lost, where, and what to do",
    "analyze": "where quantization loses, layer by layer, and what to do about it",
    "export": "write an ONNX file, float or INT8, without measuring it",
    "check": "what a target would refuse in an ONNX file or run in float, and why",
    "engine": "build a TensorRT engine from an ONNX file, and tell what runs in integers",
    "benchmark": "how fast ONNX files are on the runtimes, beside the float one, and where the time goes",
    "evaluate": "top-1, top-5 and throughput of a model on any runtime",
    "train": "train a network with its branches",
    "qat": "train on with rounding in the loop, and end as ptq does: for what quantization after training can't keep",
    "reproduce": "the known ways to INT8 for RepVGG side by side on your data, from one checkpoint",
    "insert-bn": "insert batch normalization into a deploy model, the first step of the original QAT pipeline",
}


def module_of(verb: str) -> ModuleType:
    """Return the file of a verb, which has `Options` and `run`."""
    return importlib.import_module(f"repquant.cli.{verb.replace('-', '_')}")
