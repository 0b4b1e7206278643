"""What of an ncnn network is not computed in its integers, and how ncnn is opened so that it is.

The rules come from trying ncnn 1.0.20261020 on an x86-64 CPU; results/ncnn.md says what was seen.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from repquant.targets.cpu_rules import not_loaded
from repquant.targets.finding import Finding, Rule
from repquant.targets.ncnn_file import NcnnLayer, NcnnNetwork, numbers_of

_TRIED = "ncnn 1.0.20261020, tried on x86-64"
LOADS = Rule(
    name="loads",
    severity="refused",
    source="ncnn itself",
    remedy="see what it says",
)
GROUPS = Rule(
    name="groups",
    severity="refused",
    source=_TRIED,
    remedy="give each group a Convolution of its own between Slice and Concat, or keep the layer in float",
)
WINOGRAD = Rule(
    name="winograd",
    severity="inexact",
    source=_TRIED,
    remedy="set `opt.use_winograd43_convolution = false` before the network is loaded",
)
RECIPROCAL = Rule(
    name="reciprocal",
    severity="inexact",
    source=_TRIED,
    remedy="set `opt.use_packing_layout = false` on x86 before the network is loaded",
)
INTEGER_LAYER = Rule(
    name="integer-layer",
    severity="runs in float",
    source="the layer's setting for its scales",
    remedy="quantize the layer, or leave it: what is around it runs in integers",
)
RULES = (LOADS, GROUPS, WINOGRAD, RECIPROCAL, INTEGER_LAYER)

DEPTHWISE = "ConvolutionDepthWise"
PRODUCTS = ("Convolution", DEPTHWISE, "InnerProduct")
_SCALES = 8
_MOST_BY_WINOGRAD = 2**31 // 576
_LARGEST_PRODUCT = 127 * 127


def find(path: Path, network: NcnnNetwork) -> list[Finding]:
    """Return what does not meet a rule.

    Args:
        path: of the .param file.
        network: that it holds.
    """
    found = [finding for layer in network.layers for finding in _of_layer(layer)]
    try:
        open_net(path, network)
    except RuntimeError as error:
        return [not_loaded(LOADS, error), *found]
    return found


def open_net(path: Path, network: NcnnNetwork, threads: int | None = None) -> Any:
    """Return ncnn's network, with the options under which it computes the file's integers.

    Winograd's F(4, 3) adds 576 times the sum in 32 bits. On x86, depthwise convolutions of packed channels multiply by
    an approximate reciprocal. Halves (FP16, BF16) would round what lies between layers.

    Args:
        path: of the .param file.
        network: that it holds.
        threads: of the CPU; None for one: they wait for each other without a pause, so that beside other work two of
            them took hundreds of times as long as one.

    Raises:
        RuntimeError: ncnn does not take it.
    """
    import ncnn

    net = ncnn.Net()
    options = net.opt
    options.num_threads = threads or 1
    options.use_winograd_convolution = False
    options.use_packing_layout = not any(layer.kind == DEPTHWISE and is_integer(layer) for layer in network.layers)
    for name in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_packed", "use_bf16_storage"):
        setattr(options, name, False)
    if net.load_param(str(path)) != 0:
        raise RuntimeError("ncnn does not take its layers; it says why on the standard error output")
    if net.load_model(str(numbers_of(path))) != 0:
        raise RuntimeError(f"{numbers_of(path).name} does not hold the numbers of its layers")
    return net


def is_integer(layer: NcnnLayer) -> bool:
    """Whether a layer multiplies int8."""
    return layer.kind in PRODUCTS and layer.setting(_SCALES) != 0


def _of_layer(layer: NcnnLayer) -> Iterator[Finding]:
    if layer.kind not in PRODUCTS:
        return
    if not is_integer(layer):
        yield Finding(rule=INTEGER_LAYER, node=layer.name, detail=f"it runs as {layer.kind}, on floats")
    elif layer.kind == "Convolution" and _is_for_winograd(layer):
        detail = f"with ncnn's own options sums beyond {_MOST_BY_WINOGRAD / 1e6:.1f} million overflow"
        yield Finding(rule=WINOGRAD, node=layer.name, detail=detail)
    elif layer.kind == DEPTHWISE and layer.setting(7, 1) != layer.setting(0):
        detail = "an int8 convolution of several groups of channels gives other numbers where channels are packed"
        yield Finding(rule=GROUPS, node=layer.name, detail=detail)
    elif layer.kind == DEPTHWISE:
        detail = (
            "with ncnn's own options its results are 0.02 % too small on x86: the reciprocal of the scales is a guess"
        )
        yield Finding(rule=RECIPROCAL, node=layer.name, detail=detail)


def _is_for_winograd(layer: NcnnLayer) -> bool:
    """Whether a convolution has 3 x 3 weights, stride 1, no gaps and so many channels that a sum can be too large."""
    width, dilation, stride = layer.setting(1), layer.setting(2, 1), layer.setting(3, 1)
    height = (layer.setting(11, width), layer.setting(12, dilation), layer.setting(13, stride))
    largest = layer.setting(6) // max(layer.setting(0), 1) * _LARGEST_PRODUCT
    return (width, dilation, stride) == height == (3, 1, 1) and largest > _MOST_BY_WINOGRAD
