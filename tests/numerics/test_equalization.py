import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from repquant.numerics.equalization import LayerStatistics, equalize_ranges, minimize_noise


def layer(kernel, diagonal=None, amax=None, variance=None):
    """A layer of a chain, from a kernel (O, I)."""
    outputs, inputs = kernel.shape
    return LayerStatistics(
        magnitude=kernel.abs() if diagonal is None else kernel.abs() * (1 - torch.eye(outputs)),
        energy=kernel.square(),
        diagonal=diagonal,
        variance=torch.ones(inputs) if variance is None else variance,
        amax=torch.ones(inputs) if amax is None else amax,
        active=torch.full((outputs,), 0.5),
        taps=1,
    )


def scales(layers, shortcut="inside", **options):
    return minimize_noise(layers, shortcut, **({"weight_steps": 127, "activation_steps": 127} | options))


def test_two_layers_get_the_same_range():
    producer, consumer = torch.tensor([4.0, 1.0]), torch.tensor([1.0, 9.0])
    factor = equalize_ranges(producer, consumer)
    assert factor.tolist() == [0.5, 3.0]
    assert torch.allclose(producer * factor, consumer / factor)


def test_a_channel_without_weights_keeps_its_scale():
    assert equalize_ranges(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 0.0])).tolist() == [1.0, 1.0]


def test_quiet_channels_are_made_louder():
    torch.manual_seed(0)
    amax = torch.tensor([1.0, 0.5, 1.0, 0.25])
    layers = [layer(torch.randn(4, 3)), layer(torch.randn(5, 4), amax=amax, variance=(amax / 4).square())]
    (factor,) = scales(layers, weight_steps=1e9)
    # With weights that cost nothing, sum(1 / c^2) is smallest where every channel fills the range.
    assert (factor * amax / (factor * amax).amax()).tolist() == pytest.approx([1.0] * 4, rel=0.1)


def test_a_diagonal_that_sets_the_step_is_lowered():
    torch.manual_seed(0)
    diagonal = torch.tensor([0.5, 4.0, 0.5, 0.5])
    kernel = 0.1 * torch.randn(4, 4)
    kernel.fill_diagonal_(0.0)
    layers = [layer(torch.randn(4, 3)), layer(kernel + diagonal.diag(), diagonal), layer(torch.randn(2, 4))]
    inside = scales(layers, "inside", activation_steps=1e9)[0]
    assert inside[1] / inside[0] > 1.5  # dividing the column by it makes the diagonal smaller


def test_a_residual_wants_its_diagonal_at_one():
    torch.manual_seed(0)
    diagonal = torch.tensor([0.5, 2.0, 1.0, 3.0])
    kernel = 0.01 * torch.randn(4, 4)
    kernel.fill_diagonal_(0.0)
    layers = [layer(torch.randn(4, 3)), layer(kernel + diagonal.diag(), diagonal), layer(torch.randn(2, 4))]
    before, after = scales(layers, "residual", activation_steps=1e9, iterations=500)
    assert (diagonal * after / before).tolist() == pytest.approx([1.0] * 4, abs=0.1)


def test_a_single_layer_has_nothing_to_scale():
    assert scales([layer(torch.ones(2, 2))]) == []


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 999), dead=st.booleans(), per_channel=st.booleans())
def test_scales_are_positive_and_bounded(seed, dead, per_channel):
    torch.manual_seed(seed)
    kernel, amax = torch.randn(4, 4), torch.rand(4) + 0.01
    if dead:
        kernel[:, 1] = 0.0
        kernel[2] = 0.0
    layers = [layer(torch.randn(4, 3)), layer(kernel, kernel.diagonal(), amax), layer(torch.randn(2, 4), amax=amax)]
    for factor in scales(layers, "residual", per_channel=per_channel, iterations=50):
        assert factor.isfinite().all()
        assert (factor > 0).all()
        assert factor.max() <= 64
        assert factor.min() >= 1 / 64
