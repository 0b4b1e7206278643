"""Bits for each layer by what it loses: the measure, the choice, and what the rounding methods make of it."""

from dataclasses import replace

import pytest
import torch

from repquant.choices import ROUNDINGS
from repquant.errors import InputError
from repquant.methods.attempts import Attempts, SearchData
from repquant.methods.judges import LogitsJudge
from repquant.methods.method import PtqMethod, ReconstructionOptions
from repquant.methods.mixed_precision import (
    check_average_bits,
    choose_weight_bits,
    mean_bits,
    measure_losses,
    preparing_target,
    weight_counts,
    widths_of,
)
from repquant.methods.ptq import round_graph
from repquant.methods.ranking import rank_layers
from repquant.methods.rounded import Rounded
from repquant.methods.search import methods
from repquant.simulation.network import quantized_layers
from repquant.targets.target import resolve_target

TARGET = resolve_target("onnxruntime")


@pytest.fixture(scope="module")
def whole(mixed, images, plan):
    return plan(mixed, [images], TARGET)


@pytest.fixture(scope="module")
def mixed_bits(mixed, images, whole):
    return choose_weight_bits(mixed, whole, 5.5, "max", images.split(4))


def largest(rounded):
    return {
        name: int(layer.integers.weight.abs().max()) for name, layer in quantized_layers(rounded.simulated()).items()
    }


def test_the_average_is_held_to_and_used(mixed, whole, mixed_bits):
    assert set(mixed_bits) == set(whole.layout.layers)
    assert set(mixed_bits.values()) == {4, 8}
    assert 5 < mean_bits(mixed, replace(whole, weight_bits=mixed_bits)) <= 5.5
    assert mean_bits(mixed, whole) == 8


def test_the_ends_of_the_range(mixed, images, whole):
    assert set(choose_weight_bits(mixed, whole, 4, "max", [images]).values()) == {4}
    few = replace(whole, target=resolve_target("onnxruntime", weight_bits=6))
    assert set(choose_weight_bits(mixed, few, 5, "max", [images]).values()) == {4, 6}


def test_no_other_choice_within_the_average_loses_less(mixed, images, whole, mixed_bits):
    """One layer up and another one down, or one alone, always costs more or does not fit."""
    losses, counts = measure_losses(mixed, whole, (4, 8), "max", [images]), weight_counts(mixed, whole)

    def total(bits):
        return sum(losses[own][name] for name, own in bits.items())

    budget = 5.5 * sum(counts.values())
    for name in counts:
        for other in counts:
            changed = mixed_bits | {name: 12 - mixed_bits[name], other: 12 - mixed_bits[other]}
            if sum(counts[each] * bits for each, bits in changed.items()) <= budget:
                assert total(changed) >= total(mixed_bits) * (1 - 1e-5)


def test_losses_are_those_of_the_weights_alone(mixed, images, whole):
    seen = []
    losses = measure_losses(mixed, whole, (3, 8), "max", images.split(3), seen.append)
    assert seen == [3, 3, 2]
    assert list(losses) == [3, 8]
    assert all(0 <= losses[8][name] < losses[3][name] for name in whole.layout.layers)
    coarse = replace(whole, target=resolve_target("onnxruntime", weight_bits=3))
    ranked = rank_layers(mixed, Rounded(mixed, coarse), [images])  # with activations, whose 8 bits hardly count
    assert max(losses[3], key=losses[3].get) == ranked[0]


@pytest.mark.parametrize("weight_ranges", ["max", "mse"])
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_integers_have_the_bits_of_their_layer(mixed, images, whole, mixed_bits, rounding, weight_ranges):
    method = PtqMethod(rounding=rounding, weight_ranges=weight_ranges, reconstruction=ReconstructionOptions(steps=5))
    planned = replace(whole, weight_bits=mixed_bits)
    rounded = round_graph(mixed, planned, method, images.split(4))
    assert rounded.plan.weight_bits == mixed_bits
    for name, most in largest(rounded).items():
        assert most <= 7 if mixed_bits[name] == 4 else 7 < most <= 127, name


def test_a_checkpoint_of_other_bits_is_refused(mixed, images, whole, mixed_bits, tmp_path):
    method = PtqMethod(rounding="learned", reconstruction=ReconstructionOptions(steps=2))
    path = tmp_path / "learned"
    round_graph(mixed, replace(whole, weight_bits=mixed_bits), method, [images], checkpoint=path)
    with pytest.raises(InputError, match="of another reconstruction, with other grids"):
        round_graph(mixed, whole, method, [images], checkpoint=path)


def test_outputs_that_are_no_logits_count_too(two_inputs, pairs, plan):
    bits = choose_weight_bits(two_inputs, plan(two_inputs, pairs, TARGET), 7, "max", pairs)
    assert set(bits.values()) == {4, 8}


def test_a_network_is_prepared_for_its_fewest_bits():
    assert widths_of(TARGET) == (4, 8)
    assert preparing_target(TARGET, 5).weight.bits == 4
    assert preparing_target(TARGET, None) == preparing_target(TARGET, 8) == TARGET


@pytest.mark.parametrize("average_bits", [3.9, 8.1, float("nan"), float("inf"), -1])
def test_averages_that_no_layers_hold_to(average_bits):
    with pytest.raises(InputError) as refused:
        check_average_bits(average_bits, TARGET)
    assert f"`average_bits={average_bits}` was given; allowed is from 4 to 8" in str(refused.value)
    assert "each layer gets 4 or 8 bits; for the same bits in all layers give `weight_bits`" in str(refused.value)


def test_a_cpu_without_vnni_has_seven_bits():
    with pytest.raises(InputError, match=r"from 4 to 7, as each layer gets 4 or 7 bits \(weights are in 7 bits: this"):
        check_average_bits(7.5, resolve_target("openvino", fast_int8_dot=False))


@pytest.mark.parametrize("average_bits", ["4.5", [5], 1j, torch.tensor(4.5)])
def test_averages_that_are_no_numbers(average_bits):
    with pytest.raises(InputError, match="allowed is from 4 to 8"):
        check_average_bits(average_bits, TARGET)


@pytest.mark.parametrize("weight_bits", [3, 4])
def test_a_target_that_leaves_nothing_to_choose(weight_bits):
    words = f"`average_bits=4.5` and `weight_bits={weight_bits}` were given, and no layer gets more than {weight_bits}"
    with pytest.raises(InputError, match=words):
        check_average_bits(4.5, resolve_target("openvino", weight_bits=weight_bits))


def test_no_images(mixed, whole):
    with pytest.raises(InputError, match="no images to compare layers on; give at least 1"):
        choose_weight_bits(mixed, whole, 5, "max", [])


def test_a_search_chooses_bits_once_and_keeps_no_layer_in_float(mixed, images):
    steps = []
    attempts = Attempts(
        mixed,
        resolve_target("openvino"),
        SearchData(ranges=[images], rounding=[images], ranking=[images]),
        LogitsJudge(mixed, [images]),
        average_bits=5.5,
        on_progress=lambda step, _: steps.append(step),
    )
    first, second = methods(False)[:2]
    scores = {candidate.name: attempts(candidate).loss for candidate in (first, second)}
    best = min((first, second), key=lambda each: scores[each.name])
    bits = attempts.rounded(best).plan.weight_bits
    assert set(bits.values()) == {4, 8}
    assert steps.count("choose bits") == 1
    assert list(attempts.keep_layers(best)) == []
    assert attempts.notes == [
        "no layer was kept in float: it would hold 32 bits for each weight, and `average_bits` is there to save them"
    ]
    assert torch.is_tensor(attempts.rounded(best).simulated()(images))
