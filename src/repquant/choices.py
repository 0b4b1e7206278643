"""What can be chosen by name, defined once for the library and its command line. Nothing heavy is imported here."""

from typing import Literal, get_args

TargetName = Literal["tensorrt", "onnxruntime", "openvino", "litert", "executorch", "ncnn"]
TARGETS: tuple[TargetName, ...] = get_args(TargetName)
StoredWeights = Literal["int8", "float"]
ScaleType = Literal["float32", "float16"]
EndType = Literal["float32", "int8", "uint8"]

RuntimeName = Literal["pytorch", "onnxruntime", "openvino", "tensorrt", "litert", "executorch", "ncnn"]
RUNTIMES: tuple[RuntimeName, ...] = get_args(RuntimeName)
ONNX_RUNTIMES: tuple[RuntimeName, ...] = ("onnxruntime", "openvino", "tensorrt")
"""Those that read ONNX files, in the order in which one is taken by itself."""

HistogramCalibrator = Literal["max", "percentile", "mse", "entropy"]
CALIBRATORS: tuple[HistogramCalibrator, ...] = get_args(HistogramCalibrator)
"""Those that look at nothing but a histogram of the values."""
LossAware = Literal["loss-aware"]
LOSS_AWARE: LossAware = "loss-aware"
"""Takes for each tensor what one of the others proposes, by what that does to the outputs of the network."""
Calibrator = Literal[HistogramCalibrator, LossAware]

Equalization = Literal["ranges", "noise"]
EQUALIZATIONS: tuple[Equalization, ...] = get_args(Equalization)
ShortcutKind = Literal["residual", "depthwise", "coarse-fine"]
SHORTCUT_KINDS: tuple[ShortcutKind, ...] = get_args(ShortcutKind)
Shortcut = Literal["inside", "apart", "residual"]
"""Where a layer keeps the diagonal of its identity branch: in the kernel, apart, or as a plain addition of the input
that leaves the difference between the diagonal and 1 in the kernel."""
Identity = Literal["fused", ShortcutKind]
WeightRanges = Literal["max", "mse"]
Rounding = Literal["feedback", "learned", "nearest"]
ROUNDINGS: tuple[Rounding, ...] = get_args(Rounding)
Granularity = Literal["layer", "block"]
RoundingLoss = Literal["mse", "mae"]
WeightScales = Literal["max", "learned", "fixed"]

Split = Literal["train", "val"]
Averaging = Literal["exact", "ema"]
Device = Literal["cpu", "cuda"]
Vnni = Literal["auto", "yes", "no"]
