import re
from dataclasses import replace

import pytest
from sensitivities import divergence, layer, measured

from repquant.cli.flags import with_flags
from repquant.methods.ptq import PtqMethod
from repquant.report.advice import advice
from repquant.targets.target import resolve_target

OPENVINO, ONNXRUNTIME, TENSORRT = (resolve_target(name) for name in ("openvino", "onnxruntime", "tensorrt"))
UNTREATED = PtqMethod(equalization="none", rounding="nearest")
LEARNED = PtqMethod(rounding="learned")
IDENTITY, OTHER = layer("identity", share=1.0), layer("other")
HALF = 5e-3


def sentence_for(found, method=UNTREATED, calibrator="mse", target=OPENVINO):
    """The advice as the command line shows it."""
    sentence = with_flags(advice(found, method, calibrator, target))
    assert sentence.endswith(".")
    assert ". " not in sentence
    return sentence


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (measured(OTHER, both=0.9e-3), ["9.0e-04, below 1e-03", "nothing to do"]),
        (measured(replace(OTHER, all_but=divergence(0.0)), both=0.0, weights=0.0, activations=0.0), ["nothing to do"]),
        (
            measured(OTHER, IDENTITY, replace(IDENTITY, name="second")),
            ["weights cause 90 %", "2 layers have their diagonal", "set the identity apart", "--rounding feedback"],
        ),
        (measured(OTHER, IDENTITY), ["1 layer has its diagonal", "set the identity apart"]),
        (
            measured(OTHER, layer("weak", share=0.1)),
            ["weights cause 90 %", "no identity branch explains it", "--rounding feedback", "--equalization"],
        ),
        (
            measured(IDENTITY, weights=1e-3, activations=3e-3),
            ["activations cause 75 %", "--calibrator", "--equalization"],
        ),
        (measured(OTHER, layer("stem.conv", without=HALF)), ["stem.conv alone causes 50 %", "--keep-float stem.conv"]),
        (measured(OTHER, layer("a", without=5.1e-3), weights=1e-3, activations=3e-3), ["activations cause 75 %"]),
        (measured(layer("i", share=1.0, without=1e-3)), ["set the identity apart"]),
        (
            measured(layer("i", share=1.0, without=1e-3), weights=1e-3, activations=9e-3),
            ["Layer i alone causes 90 %", "--keep-float i"],
        ),
        (measured(OTHER, layer("pool", kind="pool", without=1e-3)), ["weights cause"]),
        (measured(OTHER, weights=0.0, activations=0.0), ["Neither weights nor activations", "--calibrator"]),
    ],
)
def test_before_anything_was_done(found, words):
    sentence = sentence_for(found)
    assert all(word in sentence for word in words), sentence


WEIGHTS, ACTIVATIONS = measured(OTHER, IDENTITY), measured(IDENTITY, weights=1e-3, activations=3e-3)
FOUR_BITS = resolve_target("tensorrt", weight_bits=4)


@pytest.mark.parametrize(
    ("found", "settings", "words"),
    [
        (WEIGHTS, {"method": PtqMethod()}, ["--identity residual", "--rounding learned"]),
        (WEIGHTS, {"method": PtqMethod(), "target": ONNXRUNTIME}, ["--rounding learned", "repquant qat"]),
        (WEIGHTS, {"method": PtqMethod(), "target": TENSORRT}, ["--rounding learned", "repquant qat"]),
        (WEIGHTS, {"method": PtqMethod(), "target": FOUR_BITS}, ["--identity residual", "--rounding learned"]),
        (WEIGHTS, {"method": replace(LEARNED, identity="residual"), "target": FOUR_BITS}, ["--weight-bits 8", "qat"]),
        (WEIGHTS, {"method": replace(UNTREATED, equalization="noise")}, ["--rounding feedback", "--identity residual"]),
        (WEIGHTS, {"method": replace(UNTREATED, rounding="feedback")}, ["--equalization noise", "--identity residual"]),
        (
            WEIGHTS,
            {"method": LEARNED, "target": resolve_target("tensorrt", per_tensor_weights=True)},
            ["without --per-tensor-weights", "repquant qat"],
        ),
        (
            WEIGHTS,
            {"method": replace(LEARNED, identity="residual"), "target": resolve_target("openvino", weight_bits=7)},
            ["--weight-bits 8 --vnni yes", "repquant qat"],
        ),
        (
            measured(layer("worst", without=8e-3)),
            {"method": LEARNED, "target": ONNXRUNTIME},
            ["--keep-float worst", "repquant qat"],
        ),
        (
            measured(layer("i", share=1.0, without=1e-3)),
            {"method": LEARNED, "target": ONNXRUNTIME},
            ["--keep-float i"],
        ),
        (ACTIVATIONS, {"method": PtqMethod(), "calibrator": "max"}, ["--calibrator mse", "--rounding learned"]),
        (ACTIVATIONS, {"method": PtqMethod()}, ["--calibrator all", "--rounding learned"]),
        (ACTIVATIONS, {"method": LEARNED, "calibrator": "entropy"}, ["repquant qat"]),
        (
            ACTIVATIONS,
            {"method": LEARNED, "calibrator": "entropy", "target": resolve_target("tensorrt", activation_bits=6)},
            ["--activation-bits 8", "repquant qat"],
        ),
    ],
)
def test_what_was_done_already_is_not_advised(found, settings, words):
    cures = re.findall(r"\(([^)]*)\)", sentence_for(found, **settings))
    assert len(cures) == len(words)
    assert all(word in cure for word, cure in zip(words, cures, strict=True)), cures


@pytest.mark.parametrize("target", [OPENVINO, ONNXRUNTIME, TENSORRT, FOUR_BITS])
@pytest.mark.parametrize("found", [WEIGHTS, ACTIVATIONS], ids=["weights", "activations"])
def test_who_follows_the_advice_never_gets_it_again(found, target):
    method, calibrator, bits, followed = UNTREATED, "max", target.weight.bits, []
    while flags := re.findall(r"--([a-z-]+) ([a-z0-9]+)", sentence_for(found, method, calibrator, target)):
        assert not set(flags) & set(followed)
        followed += flags
        for name, value in flags:
            if name in ("equalization", "rounding", "identity"):
                method = replace(method, **{name: value})
            elif name == "calibrator":
                calibrator = "percentile" if value == "all" else value
            else:
                assert name == "weight-bits"
                bits = int(value)
        target = resolve_target(target.name, weight_bits=bits)
    assert ("rounding", "learned") in followed
