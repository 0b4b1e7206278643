from math import isfinite

import pytest
import torch

from repquant.errors import InputError
from repquant.graph.layout import find_layout
from repquant.graph.run import run
from repquant.methods.divergence import Comparison, Divergence
from repquant.methods.points import find_points
from repquant.methods.ptq import PtqMethod, round_graph
from repquant.methods.ranking import rank_layers
from repquant.methods.sensitivity import measure_sensitivity
from repquant.numerics.distance import softmax_kl
from repquant.simulation.network import simulate
from repquant.targets.target import resolve_target

TARGET = resolve_target("onnxruntime", weight_bits=4)


@torch.inference_mode()
def kl(graph, other, images):
    return softmax_kl(run(graph, images)[0], run(other, images)[0]).mean().item()


@pytest.fixture(scope="module")
def rounded(mixed, images, plan):
    return round_graph(mixed, plan(mixed, [images], TARGET), PtqMethod(rounding="nearest"), [])


@pytest.fixture(scope="module")
def measured(mixed, rounded, images):
    return measure_sensitivity(mixed, rounded, images.split(3))


def test_the_whole_is_the_simulated_network(mixed, rounded, measured, images):
    assert measured.images == len(images)
    assert measured.both.kl == pytest.approx(kl(mixed, rounded.simulated(), images))
    assert measured.both.sqnr_db is None


@pytest.mark.parametrize("name", ["stem", "depthwise", "up", "head"])
def test_a_layer_in_float_is_a_network_that_keeps_it(mixed, rounded, measured, images, plan, name):
    """Its place with everything else quantized, against a simulation of a plan that leaves it in float."""
    (layer,) = [layer for layer in measured.layers if layer.name == name]
    fewer = simulate(mixed, plan(mixed, [images], TARGET, [name]))
    assert layer.all_but.kl == pytest.approx(kl(mixed, fewer, images), rel=0.2)
    assert layer.has_weights


def test_places_are_layers_and_operators_in_the_order_of_computing(mixed, rounded, measured):
    names = [layer.name for layer in measured.layers]
    assert names == [point.name for point in find_points(mixed, rounded)]
    layers = [layer.name for layer in measured.layers if layer.has_weights]
    assert layers == list(find_layout(mixed, TARGET).layers)
    kinds = {layer.name: layer.kind for layer in measured.layers}
    assert (kinds["stem"], kinds["up"], kinds["tokens"]) == ("conv3x3", "conv-transpose2x2", "linear")
    assert {"add", "mul", "silu"} <= set(kinds.values())
    for layer in measured.layers:
        assert (layer.weight_sqnr_db is not None) == layer.has_weights
        assert isfinite(layer.input_sqnr_db)
    assert [layer.name for layer in measured.layers if layer.may_hold_identity] == ["block", "depthwise"]
    assert measured.histogram.layer in ("block", "depthwise")


def test_the_worst_layers_have_histograms_of_all_that_they_hold_and_read(mixed, rounded, measured, images):
    costs = {layer.name: layer.all_but.harm for layer in measured.layers if layer.has_weights}
    assert [histogram.layer for histogram in measured.worst] == sorted(costs, key=costs.__getitem__)[:6]
    simulated = rounded.simulated()
    for histogram in measured.worst:
        weight = simulated.get_submodule(histogram.layer).integers.weight
        assert sum(histogram.weights) == weight.numel()
        assert histogram.weights[-histogram.weight_first] == int((weight == 0).sum())
        assert sum(histogram.inputs) % len(images) == 0
        assert histogram.clipped_below + histogram.clipped_above < sum(histogram.inputs)


def test_the_layer_that_was_spoiled_comes_first(mixed, images, plan):
    whole = plan(mixed, [images], resolve_target("onnxruntime"))
    layer = round_graph(mixed, whole, PtqMethod(rounding="nearest"), [])
    with torch.no_grad():
        layer.graph.get_submodule("grouped").weight.mul_(0.7)
    ranked = rank_layers(mixed, layer, images.split(4))
    assert ranked[0] == "grouped"
    assert set(ranked) == set(whole.layout.layers)


def test_two_inputs_and_an_output_without_classes(two_inputs, pairs, plan):
    whole = plan(two_inputs, pairs, TARGET)
    found = round_graph(two_inputs, whole, PtqMethod(rounding="nearest"), [])
    measured = measure_sensitivity(two_inputs, found, pairs)
    assert measured.images == 8
    assert measured.both.kl > 0
    assert measured.both.sqnr_db > 10
    alone = {layer.name: layer.only for layer in measured.layers}
    assert alone["map"].kl == 0  # it has no part in the logits
    assert alone["map"].sqnr_db > 10
    assert alone["head"].sqnr_db is None


def test_divergence_by_hand():
    comparison = Comparison("it")
    logits, values = torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([[[3.0, 4.0]]])
    comparison.add((logits, values), (torch.tensor([[0.0, 0.0], [0.0, 1.0]]), values + torch.tensor([0.0, 0.5])))
    result = comparison.result()
    assert result.agreement == 50.0
    assert result.kl == pytest.approx(0.5 * (0.7311 - 0.2689), rel=1e-3)
    assert result.sqnr_db == pytest.approx(20.0)
    assert result.harm == pytest.approx(result.kl + 0.01)
    assert Divergence().harm == 0
    with pytest.raises(FloatingPointError, match="it returned NaN"):
        comparison.add((logits,), (logits / 0,))


def test_no_images(mixed, rounded):
    for measure in (measure_sensitivity, rank_layers):
        with pytest.raises(InputError, match="there are no images"):
            measure(mixed, rounded, [])
