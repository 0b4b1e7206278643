import math
from dataclasses import replace

import pytest
import torch

from repquant.errors import InputError
from repquant.numerics.adaround import (
    PENALTY,
    Adam,
    LayerOutput,
    LayerRows,
    RoundingOptions,
    SoftRounding,
    inverse_rectified_sigmoid,
    learn_rounding,
    penalty_exponent,
)
from repquant.numerics.affine import INT32_MAX, Scheme

SCHEME = Scheme(bits=4, narrow=True, channel_axis=0)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """The problems are so small that threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def problem(rows=400, groups=1, channels=6, weights=24, relu=False, seed=0, largest=7.0):
    """Inputs that correlate, as maps do; weights on a grid of a few bits; the float output as target."""
    generator = seeded(seed)
    mixing = torch.randn(weights, weights // 4, generator=generator)
    latent = torch.randn(rows, groups, weights // 4, generator=generator)
    steps = (latent @ mixing.T * 12 + 20).clamp(0, 255).round()
    counts = torch.randn(channels, weights, generator=generator)
    counts *= largest / counts.abs().amax(1, keepdim=True)
    scale = torch.rand(channels, generator=generator) * 0.05 + 0.02
    bias = torch.randn(channels, generator=generator)
    targets = output(steps, counts, scale * 0.03, bias)
    layer = LayerRows(steps=steps.short(), targets=targets, input_scale=0.03, relu=relu)
    return layer, counts, scale, bias


def output(steps, weight, scale, bias):
    groups = steps.shape[1]
    y = torch.bmm(steps.float().transpose(0, 1), weight.float().reshape(groups, -1, steps.shape[2]).transpose(1, 2))
    return y.transpose(0, 1).flatten(1) * scale + bias


def error(rows, integers, scale, bias, absolute=False):
    """The mean error of each channel."""
    y, targets = output(rows.steps, integers, scale * rows.input_scale, bias), rows.targets
    y = y if rows.addend is None else y + rows.addend
    difference = y.relu() - targets.relu() if rows.relu else y - targets
    return (difference.abs() if absolute else difference.square()).mean(0)


def nearest(counts):
    return counts.round().clamp(SCHEME.qmin, SCHEME.qmax)


def learn(parts, seed=0, **options):
    rows, counts, scale, bias = parts
    options = RoundingOptions(**{"steps": 200, "batch": 64, **options})
    return learn_rounding(rows, counts, scale, bias, SCHEME, options, seeded(seed))


def test_the_soft_weights_start_at_the_float_ones_and_clip_at_the_ends():
    counts = torch.tensor([[-9.0, -7.0, -3.25, 0.0, 0.5, 6.9, 7.0, 30.5]])
    rounding = SoftRounding(counts, SCHEME)
    expected = torch.tensor([[-7.0, -7.0, -3.25, 0.0, 0.5, 6.9, 7.0, 7.0]])
    assert torch.allclose(rounding.soft(), expected, atol=2e-3)
    assert rounding.hard().dtype == torch.int8
    assert rounding.hard().tolist() == [[-7, -7, -3, 0, 1, 7, 7, 7]]


def test_the_rectified_sigmoid_reaches_both_ends():
    h = torch.linspace(0.01, 0.99, 50)
    assert torch.allclose(1.2 * torch.sigmoid(inverse_rectified_sigmoid(h)) - 0.1, h, atol=1e-6)
    assert inverse_rectified_sigmoid(torch.tensor([0.0, 1.0])).isfinite().all()


@pytest.mark.parametrize("exponent", [None, 2, 4, 14, 20])
def test_the_gradient_of_alpha_is_that_of_autograd(exponent):
    counts = torch.randn(5, 40, generator=seeded()) * 4
    rounding = SoftRounding(counts, SCHEME)
    rounding.alpha = torch.randn(5, 40, generator=seeded(1)) * 2  # some h are at 0 and at 1
    direction = torch.randn(5, 40, generator=seeded(2))

    alpha = rounding.alpha.double().requires_grad_()
    h = (torch.sigmoid(alpha) * 1.2 - 0.1).clamp(0, 1)
    soft = (counts.double().floor() + h).clamp(SCHEME.qmin, SCHEME.qmax)
    loss = (soft * direction).sum()
    if exponent is not None:
        loss = loss + 3.0 * (1 - (2 * h - 1).abs() ** exponent).sum()
    loss.backward()

    assert torch.allclose(rounding.soft().double(), soft.detach(), atol=1e-5)
    assert torch.allclose(rounding.gradient(direction.clone(), exponent, 3.0).double(), alpha.grad, atol=1e-4)
    assert (alpha.grad == 0).any(), "weights that clip or have reached an integer"
    assert (alpha.grad != 0).any()


@pytest.mark.parametrize("loss", ["mse", "mae"])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("added", [False, True])
def test_the_gradients_through_the_output_are_those_of_autograd(loss, relu, groups, added):
    rows, counts, scale, bias = problem(groups=groups, relu=relu)
    weights = counts.shape[1]
    if added:
        addend = torch.randn(rows.targets.shape, generator=seeded(5))
        rows = replace(rows, addend=addend, targets=rows.targets + addend)
    accumulator = (scale * rows.input_scale).reshape(groups, 1, -1)
    layer = LayerOutput(rows, accumulator, bias, counts, SCHEME, RoundingOptions(loss=loss, affine=True))
    shift, stretch = layer.parameters
    shift.copy_(torch.randn(shift.shape, generator=seeded(3)))
    stretch.copy_(torch.randn(shift.shape, generator=seeded(4)))

    weight = counts.reshape(groups, -1, weights).clone().requires_grad_()
    gain, offset = (value.clone().requires_grad_() for value in (layer.gain, layer.bias))
    x, targets = rows.steps.float().transpose(0, 1), rows.targets.unflatten(1, (groups, -1)).transpose(0, 1)
    addend = rows.addend.unflatten(1, (groups, -1)).transpose(0, 1) if added else 0.0
    y = torch.bmm(x, weight.transpose(1, 2)) * accumulator * gain + offset + addend
    difference = y.relu() - targets.relu() if relu else y - targets
    mean_error = (difference.abs() if loss == "mae" else difference.square()).mean(1).sum()
    at_nearest = error(rows, nearest(counts), scale, bias, absolute=loss == "mae").sum()
    (mean_error * counts.numel() / at_nearest).backward()

    with torch.no_grad():
        found, shift_gradient, stretch_gradient = layer.gradients(x, weight, targets, addend)
    assert torch.allclose(found, weight.grad, rtol=1e-3, atol=1e-4 * weight.grad.abs().max().item())
    unit = (layer.bias - bias.reshape(shift.shape)) / shift
    assert torch.allclose(shift_gradient, offset.grad * unit, rtol=1e-3)
    unit = (layer.gain - 1) / stretch
    assert torch.allclose(stretch_gradient, gain.grad * unit, rtol=1e-2, atol=1e-3)


def test_adam_moves_as_its_paper_says():
    parameter = torch.randn(30, generator=seeded()).double()
    adam, expected, mean, square = Adam([parameter], 0.05), parameter.clone(), 0.0, 0.0
    for step in range(1, 20):
        gradient = torch.randn(30, generator=seeded(step)).double() * 10.0**-step
        adam.step([gradient])
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        expected -= 0.05 * (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
    assert torch.allclose(parameter, expected, atol=1e-12)


def test_the_penalty_comes_after_a_fifth_of_the_steps():
    exponents = [penalty_exponent(step, 1000) for step in range(1000)]
    assert exponents[:200] == [None] * 200
    assert exponents[200] == 20
    assert exponents[-1] == 2
    assert exponents[200:] == sorted(exponents[200:], reverse=True)
    assert penalty_exponent(0, 1) is None


@pytest.mark.parametrize("groups", [1, 2, 6], ids=["dense", "grouped", "depthwise"])
@pytest.mark.parametrize("loss", ["mse", "mae"])
def test_the_output_is_closer_than_with_rounding_to_nearest(groups, loss):
    parts = problem(groups=groups)
    rows, counts, scale, bias = parts
    found = learn(parts, loss=loss)
    before = error(rows, nearest(counts), scale, bias)
    after = error(rows, found.integers, scale, found.bias)
    assert after.sum() < 0.3 * before.sum()
    assert (after < before).all(), "each channel, and so each group"
    assert torch.equal(found.gain, torch.ones(6))


def test_the_error_behind_a_relu_falls():
    parts = problem(relu=True)
    rows, counts, scale, bias = parts
    found = learn(parts)
    assert error(rows, found.integers, scale, found.bias).sum() < 0.3 * error(rows, nearest(counts), scale, bias).sum()


def test_what_is_added_to_the_output_is_reckoned_with():
    """Weights and bias make up for an addend that is wrong in its mean."""
    rows, counts, scale, bias = problem(relu=True)
    shortcut = torch.randn(rows.targets.shape, generator=seeded(6)) * 3
    beside = replace(rows, targets=rows.targets + shortcut, addend=shortcut + 0.5)
    found = learn((beside, counts, scale, bias))
    assert error(beside, found.integers, scale, found.bias).sum() < 0.1 * error(beside, counts, scale, bias).sum()
    assert (found.bias < bias - 0.2).all()


def test_integers_are_on_the_grid_and_next_to_the_weight():
    parts = problem(largest=9.0)  # beyond the ends of the grid
    counts = parts[1]
    integers = learn(parts).integers.float()
    assert integers.min() >= SCHEME.qmin
    assert integers.max() <= SCHEME.qmax
    assert ((integers - counts.clamp(SCHEME.qmin, SCHEME.qmax)).abs() < 1).all()
    assert (integers != nearest(counts)).any()


def test_weights_on_the_grid_stay_there_and_the_bias_too():
    rows, counts, scale, bias = problem()
    counts = nearest(counts)
    targets = output(rows.steps, counts, scale * rows.input_scale, bias)
    found = learn((LayerRows(steps=rows.steps, targets=targets, input_scale=rows.input_scale), counts, scale, bias))
    assert torch.equal(found.integers.float(), counts)
    assert torch.allclose(found.bias, bias, atol=1e-2)


def test_a_lost_offset_comes_back_in_the_bias():
    rows, counts, scale, bias = problem()
    found = learn((rows, counts, scale, bias + 0.3))
    assert torch.allclose(found.bias, bias, atol=0.2)
    assert (found.bias - bias).abs().mean() < 0.1


def test_a_layer_without_bias_gets_none():
    rows, counts, scale, bias = problem()
    rows = LayerRows(steps=rows.steps, targets=rows.targets - bias, input_scale=rows.input_scale)
    found = learn((rows, counts, scale, None))
    assert found.bias is None
    zero = torch.zeros(6)
    assert error(rows, found.integers, scale, zero).sum() < error(rows, nearest(counts), scale, zero).sum()


def test_a_gain_makes_up_for_a_scale_that_is_wrong():
    rows, counts, scale, bias = problem()
    wrong = torch.tensor([0.8, 0.9, 1.0, 1.1, 1.2, 1.3])
    found = learn((rows, counts, scale * wrong, bias), steps=400, affine=True)
    assert torch.allclose(found.gain * wrong, torch.ones(6), atol=0.1)
    plain = learn((rows, counts, scale * wrong, bias), steps=400)
    left = error(rows, found.integers, scale * wrong * found.gain, found.bias).sum()
    assert left < 0.5 * error(rows, plain.integers, scale * wrong, plain.bias).sum()


def test_one_scale_for_all_channels():
    rows, counts, _, bias = problem()
    scale = torch.tensor(0.04)
    targets = output(rows.steps, counts, scale * rows.input_scale, bias)
    rows = LayerRows(steps=rows.steps, targets=targets, input_scale=rows.input_scale)
    found = learn((rows, counts, scale, bias))
    after = error(rows, found.integers, scale, found.bias).sum()
    assert after < 0.3 * error(rows, nearest(counts), scale, bias).sum()


def test_dropped_inputs_are_the_float_ones():
    """With all elements dropped, what the quantized input holds is never learned from."""
    rows, counts, scale, bias = problem(rows=1200)
    noisy = (rows.steps + torch.randint(-15, 16, rows.steps.shape, generator=seeded(5))).short()
    both = LayerRows(
        steps=noisy, targets=rows.targets, input_scale=rows.input_scale, float_steps=rows.steps.to(torch.float16)
    )
    found = {drop: learn((both, counts, scale, bias), drop=drop) for drop in (0.0, 0.5, 1.0)}
    left = {drop: float(error(rows, x.integers, scale, x.bias).sum()) for drop, x in found.items()}
    assert left[1.0] < left[0.5] < left[0.0]


def test_the_seed_decides():
    parts = problem()
    first, again, other = learn(parts), learn(parts), learn(parts, seed=1)
    assert torch.equal(first.integers, again.integers)
    assert torch.equal(first.bias, again.bias)
    assert not torch.equal(first.bias, other.bias)


def test_dead_inputs_and_a_single_row_are_no_failure():
    rows, counts, scale, bias = problem()
    dead = LayerRows(steps=torch.zeros_like(rows.steps), targets=bias.expand(400, 6).clone(), input_scale=0.03)
    assert torch.allclose(learn((dead, counts, scale, bias), affine=True).bias, bias)
    single = LayerRows(steps=rows.steps[:1], targets=rows.targets[:1], input_scale=0.03)
    found = learn((single, counts, scale, bias), affine=True)
    assert found.bias.isfinite().all()
    assert found.gain.isfinite().all()


def test_a_bias_never_leaves_32_bits():
    rows, counts, _, _ = problem()
    tiny = torch.full((6,), 1e-12)
    targets = torch.full_like(rows.targets, 1e3)
    rows = LayerRows(steps=rows.steps, targets=targets, input_scale=rows.input_scale)
    found = learn((rows, counts, tiny, torch.zeros(6)))
    assert (found.bias / (tiny * rows.input_scale) <= INT32_MAX).all()


def test_each_step_is_reported():
    rows, counts, scale, bias = problem()
    reported = []
    learn_rounding(rows, counts, scale, bias, SCHEME, RoundingOptions(steps=7), seeded(), reported.append)
    assert reported == [1] * 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "`steps=0` was given; allowed is from 1"),
        ({"batch": -1}, "`batch=-1` was given"),
        ({"learning_rate": 0.0}, "`learning_rate=0.0` was given; allowed is more than 0"),
        ({"learning_rate": math.nan}, "`learning_rate=nan` was given"),
        ({"loss": "huber"}, "`loss='huber'` was given; allowed is one of mse, mae"),
        ({"drop": 1.5}, "`drop=1.5` was given; allowed is from 0 to 1"),
        ({"drop": math.nan}, "drop=nan"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        RoundingOptions(**options)


def test_the_penalty_is_the_stronger_term_at_the_end():
    """Undecided weights would move when they are rounded: the last soft weights must be the hard ones."""
    assert PENALTY > 100
    rows, counts, scale, bias = problem()
    rounding = SoftRounding(counts.reshape(1, 6, 24), SCHEME)
    layer = LayerOutput(rows, (scale * 0.03).reshape(1, 1, 6), bias, counts, SCHEME, RoundingOptions())
    adam = Adam([rounding.alpha], 0.08)
    x, targets = rows.steps.float().transpose(0, 1), rows.targets.unflatten(1, (1, 6)).transpose(0, 1)
    for step in range(200):
        gradient = layer.gradients(x, rounding.soft(), targets)[0]
        adam.step([rounding.gradient(gradient, penalty_exponent(step, 200), PENALTY)])
    assert ((rounding.soft() - rounding.hard()).abs() < 0.01).float().mean() > 0.95
