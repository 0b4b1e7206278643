import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from repquant.numerics import learned_step
from repquant.numerics.affine import Grid, Scheme, fake_quantize, grid_for_range
from repquant.numerics.learned_step import gradient_factor, learned_fake_quantize

SCHEMES = [
    Scheme(bits=8),
    Scheme(bits=4, narrow=True),
    Scheme(bits=8, signed=False, symmetric=False),
    Scheme(bits=3, channel_axis=0),
    Scheme(bits=5, channel_axis=0, narrow=True),
]


def grid(x, scheme):
    if scheme.channel_axis is None:
        return grid_for_range(x.min() * 0.7, x.max() * 0.7, scheme)
    flat = x.detach().movedim(scheme.channel_axis, 0).flatten(1)
    return grid_for_range(flat.amin(1) * 0.7, flat.amax(1) * 0.7, scheme)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_it_equals_fake_quantization_bit_for_bit(scheme):
    x = torch.randn(6, 5, 4, generator=torch.Generator().manual_seed(0))
    of_x = grid(x, scheme)
    found = learned_fake_quantize(x, of_x.scale, of_x.zero_point, scheme, 1.0)
    assert torch.equal(found, fake_quantize(x, of_x))


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_parts_make_no_difference(scheme, monkeypatch):
    x = torch.randn(6, 5, 4, generator=torch.Generator().manual_seed(0))
    of_x = grid(x, scheme)
    gradients = []
    for part in (1 << 18, 7):
        monkeypatch.setattr(learned_step, "_PART", part)
        leaf, scale = x.clone().requires_grad_(), of_x.scale.clone().requires_grad_()
        y = learned_fake_quantize(leaf, scale, of_x.zero_point, scheme, 1.0)
        y.backward(x + 1)
        gradients.append((y.detach(), leaf.grad, scale.grad))
    for whole, parts in zip(*gradients, strict=True):
        assert torch.allclose(whole, parts, rtol=1e-5)


def test_the_gradient_of_the_scale_does_not_cancel():
    """The gradient of large maps is a small difference of large sums in the usual form."""
    x = torch.rand(1 << 20, generator=torch.Generator().manual_seed(0)) * 20
    weights = torch.randn(len(x), generator=torch.Generator().manual_seed(1)) + 1
    scale = torch.tensor(0.1, requires_grad=True)
    y = learned_fake_quantize(x, scale, torch.tensor(0, dtype=torch.int32), Scheme(bits=8), 1.0)
    y.backward(weights)
    steps = x.double() / 0.1
    errors = torch.where(steps <= 127 + 1e-3, steps.round().clamp(max=127) - steps.clamp(max=127), 127.0)
    assert float(scale.grad) == pytest.approx(float((weights.double() * errors).sum()), rel=1e-5)


def test_gradients_computed_by_hand():
    scheme = Scheme(bits=3)  # -4..3
    x = torch.tensor([0.3, -1.7, 4.0, -9.0], requires_grad=True)
    scale = torch.tensor(1.0, requires_grad=True)
    y = learned_fake_quantize(x, scale, torch.tensor(0, dtype=torch.int32), scheme, 0.5)
    assert y.tolist() == [0.0, -2.0, 3.0, -4.0]
    y.backward(torch.tensor([1.0, 10.0, 100.0, 1000.0]))
    assert x.grad.tolist() == [1.0, 10.0, 0.0, 0.0]
    # round(v) - v inside, the grid's ends outside
    assert float(scale.grad) == pytest.approx(0.5 * (-0.3 - 0.3 * 10 + 3 * 100 - 4 * 1000), rel=1e-6)


def test_the_ends_of_the_grid_are_on_it():
    x = torch.tensor([3.0, -4.0, 3.1, -4.1], requires_grad=True)
    learned_fake_quantize(
        x, torch.tensor(1.0), torch.tensor(0, dtype=torch.int32), Scheme(bits=3), 1.0
    ).sum().backward()
    assert x.grad.tolist() == [1.0, 1.0, 0.0, 0.0]


@given(st.integers(0, 1000), st.sampled_from([4, 8]))
def test_the_largest_weight_of_a_channel_trains(seed, bits):
    """It sets the scale, and 127 scales divided by the scale are not 127 in float32."""
    scheme = Scheme(bits=bits, channel_axis=0, narrow=True)
    weight = torch.randn(16, 9, generator=torch.Generator().manual_seed(seed))
    amax = weight.abs().amax(1)
    of_weight = grid_for_range(-amax, amax, scheme)
    for values in (weight, fake_quantize(weight, of_weight)):
        leaf = values.clone().requires_grad_()
        learned_fake_quantize(leaf, of_weight.scale, of_weight.zero_point, scheme, 1.0).sum().backward()
        assert (leaf.grad == 1).all()


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_the_gradient_of_the_scale_is_that_of_the_definition(scheme):
    x = torch.randn(6, 5, 4, generator=torch.Generator().manual_seed(1))
    of_x = grid(x, scheme)
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))

    def definition(x, scale, zero_point):
        """LSQ as it is written: clip, then round with the gradient passed through."""
        shape = [1] * x.dim()
        if scheme.channel_axis is not None:
            shape[scheme.channel_axis] = -1
        scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
        steps = (x / scale).clamp(scheme.qmin - zero_point, scheme.qmax - zero_point)
        return (steps + (steps.round() - steps).detach()) * scale

    gradients = []
    for function in (definition, lambda *arguments: learned_fake_quantize(*arguments, scheme, 1.0)):
        leaf, scale = x.clone().requires_grad_(), of_x.scale.clone().requires_grad_()
        (function(leaf, scale, of_x.zero_point) * weights).sum().backward()
        gradients.append((leaf.grad, scale.grad))
    assert torch.allclose(gradients[0][0], gradients[1][0], rtol=1e-6, atol=0)
    assert torch.allclose(gradients[0][1], gradients[1][1], rtol=1e-4, atol=1e-4)


def test_no_gradient_of_a_scale_that_is_not_learned():
    x = torch.randn(4, requires_grad=True)
    y = learned_fake_quantize(x, torch.tensor(0.1), torch.tensor(0, dtype=torch.int32), Scheme(bits=8), 1.0)
    y.sum().backward()
    assert x.grad.tolist() == [1.0] * 4


@given(st.floats(-1.0, 0.0))
def test_a_scale_that_training_pushed_to_zero_or_below_gives_finite_values(value):
    scale = torch.tensor(value, requires_grad=True)
    y = learned_fake_quantize(torch.randn(5), scale, torch.tensor(0, dtype=torch.int32), Scheme(bits=8), 1.0)
    assert y.isfinite().all()


def test_the_factor_balances_updates():
    assert gradient_factor(100, Scheme(bits=3)) == pytest.approx(1 / 300**0.5)
    assert gradient_factor(0, Scheme(bits=8)) < 1


def test_it_can_learn_the_scale_that_the_mean_squared_error_is_smallest_for():
    x = torch.randn(20_000, generator=torch.Generator().manual_seed(3))
    scheme = Scheme(bits=3)
    zero_point = torch.tensor(0, dtype=torch.int32)

    def error(value):
        return (learned_fake_quantize(x, torch.as_tensor(value), zero_point, scheme, 1.0) - x).square().mean()

    best = min(torch.linspace(0.2, 1.5, 131), key=lambda value: float(error(value)))
    scale = torch.tensor(1.5, requires_grad=True)
    optimizer = torch.optim.Adam([scale], lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        error(scale).backward()
        optimizer.step()
    assert float(scale.detach()) == pytest.approx(float(best), rel=0.05)
    assert Grid(scale.detach(), zero_point, scheme).scale > 0
