import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from repquant.numerics.equalization import (
    LayerScales,
    LayerStatistics,
    TensorStatistics,
    balance_ranges,
    chain_gains,
    equalize_ranges,
    gain_through,
    minimize_noise,
    scales_at,
)


class Chain:
    """Statistics of a chain of layers with kernels (O, I), half of whose outputs pass a ReLU."""

    def __init__(self, *kernels, diagonals=(), amax=None, variance=None, one_step=()):
        widths = [len(kernel) for kernel in kernels[:-1]]
        links = torch.arange(sum(widths)).split(widths)
        indices = [torch.full((kernels[0].shape[1],), -1), *links, torch.full((len(kernels[-1]),), -1)]
        energies = [kernel.square().unsqueeze(0).double() for kernel in kernels]
        gains = chain_gains(energies, [torch.full((width,), 0.5) for width in widths])
        diagonals = dict(diagonals)
        self.count = sum(widths)
        self.layers, self.tensors = [], []
        for position, (kernel, gain) in enumerate(zip(kernels, gains, strict=True)):
            diagonal = diagonals.get(position)
            magnitude = kernel.abs() if diagonal is None else kernel.abs() * (1 - torch.eye(len(kernel)))
            ones = torch.ones(kernel.shape[1])
            self.layers.append(
                LayerStatistics(
                    inputs=indices[position],
                    outputs=indices[position + 1],
                    magnitude=magnitude.unsqueeze(0).double(),
                    diagonal=None if diagonal is None else diagonal.double(),
                    seen=(kernel != 0).unsqueeze(0).double(),
                    variance=(variance if variance is not None and position else ones).double(),
                    gain=gain,
                    taps=1,
                    one_step=one_step,
                )
            )
            if position:
                high = (ones if amax is None else amax).double()
                self.tensors.append(
                    TensorStatistics(
                        channels=indices[position],
                        high=high,
                        low=torch.zeros_like(high),
                        gain=gain_through(energies[position], gain),
                    )
                )

    def scales(self, shortcut="inside", **options):
        steps = {"weight_steps": 127, "activation_steps": 127} | options
        found = minimize_noise(self.layers, self.tensors, self.count, shortcut, **steps)
        return found.split([len(layer.outputs) for layer in self.layers[:-1]])


def test_two_layers_get_the_same_range():
    producer, consumer = torch.tensor([4.0, 1.0]), torch.tensor([1.0, 9.0])
    factor = equalize_ranges(producer, consumer)
    assert factor.tolist() == [0.5, 3.0]
    assert torch.allclose(producer * factor, consumer / factor)


def test_a_channel_without_weights_keeps_its_scale():
    assert equalize_ranges(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 0.0])).tolist() == [1.0, 1.0]


def test_scales_at_indices():
    assert scales_at(torch.tensor([2.0, 3.0]), torch.tensor([[1, -1], [0, 1]])).tolist() == [[3.0, 1.0], [2.0, 3.0]]


def test_of_several_producers_and_consumers_the_largest_counts():
    def layer(inputs, outputs, magnitude):
        return LayerScales(
            inputs=torch.tensor(inputs), outputs=torch.tensor(outputs), magnitude=torch.tensor([magnitude]).double()
        )

    layers = [
        layer([-1], [0], [[1.0]]),
        layer([-1], [0], [[4.0]]),
        layer([0], [-1], [[16.0]]),
        layer([0], [-1], [[9.0]]),
    ]
    assert balance_ranges(layers, 1).tolist() == [2.0]  # sqrt(16 / 4)


def test_ranges_of_groups_are_balanced_within_them():
    torch.manual_seed(0)
    layers = [
        LayerScales(inputs=torch.full((3,), -1), outputs=torch.arange(4), magnitude=torch.rand(1, 4, 3).double()),
        LayerScales(inputs=torch.arange(4), outputs=torch.full((6,), -1), magnitude=torch.rand(2, 3, 2).double()),
    ]
    scales = balance_ranges(layers, 4)
    rows = layers[0].magnitude.amax(2).flatten() * scales
    columns = layers[1].magnitude.amax(1).flatten() / scales
    torch.testing.assert_close(rows, columns)


def test_the_gains_of_a_chain_by_hand():
    first, second = torch.tensor([[[1.0], [2.0]]]).double(), torch.tensor([[[3.0, 5.0]]]).double()
    gains = chain_gains([first, second], [torch.tensor([0.5, 1.0]).double()])
    assert [gain.tolist() for gain in gains] == [[1.5, 5.0], [1.0]]
    assert gain_through(first, gains[0]).tolist() == [11.5]
    depthwise = torch.tensor([[[2.0]], [[7.0]]]).double()
    assert gain_through(depthwise, torch.tensor([1.0, 3.0]).double()).tolist() == [2.0, 21.0]


def test_quiet_channels_are_made_louder():
    torch.manual_seed(0)
    amax = torch.tensor([1.0, 0.5, 1.0, 0.25])
    chain = Chain(torch.randn(4, 3), torch.randn(5, 4), amax=amax, variance=(amax / 4).square())
    (factor,) = chain.scales(weight_steps=1e9)
    # With weights that cost nothing, sum(1 / c^2) is smallest where every channel fills the range.
    assert (factor * amax / (factor * amax).amax()).tolist() == pytest.approx([1.0] * 4, rel=0.1)


def test_a_range_with_two_ends_is_as_wide_as_both():
    tensor = TensorStatistics(
        channels=torch.tensor([0, 1]),
        high=torch.tensor([1.0, 0.0]).double(),
        low=torch.tensor([0.0, 1.0]).double(),
        gain=torch.tensor([1.0, 16.0]).double(),
    )
    # (c + d)^2 (1 / c^2 + 16 / d^2) is smallest where (d / c)^3 = 16.
    scales = minimize_noise([], [tensor], 2, weight_steps=127, activation_steps=255, iterations=400)
    assert float(scales[1] / scales[0]) == pytest.approx(16 ** (1 / 3), rel=1e-3)


def test_a_diagonal_that_sets_the_step_is_lowered():
    torch.manual_seed(0)
    diagonal = torch.tensor([0.5, 4.0, 0.5, 0.5])
    kernel = 0.1 * torch.randn(4, 4)
    kernel.fill_diagonal_(0.0)
    chain = Chain(torch.randn(4, 3), kernel + diagonal.diag(), torch.randn(2, 4), diagonals={1: diagonal})
    inside = chain.scales("inside", activation_steps=1e9)[0]
    assert inside[1] / inside[0] > 1.5  # dividing the column by it makes the diagonal smaller


def test_a_residual_wants_its_diagonal_at_one():
    torch.manual_seed(0)
    diagonal = torch.tensor([0.5, 2.0, 1.0, 3.0])
    kernel = 0.01 * torch.randn(4, 4)
    kernel.fill_diagonal_(0.0)
    chain = Chain(torch.randn(4, 3), kernel + diagonal.diag(), torch.randn(2, 4), diagonals={1: diagonal})
    before, after = chain.scales("residual", activation_steps=1e9, iterations=500)
    assert (diagonal * after / before).tolist() == pytest.approx([1.0] * 4, abs=0.1)


def test_nothing_to_scale():
    assert minimize_noise([], [], 0, weight_steps=127, activation_steps=127).shape == (0,)
    assert minimize_noise([], [], 2, weight_steps=127, activation_steps=127).tolist() == [1.0, 1.0]


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 999), dead=st.booleans(), one_step=st.sampled_from([(), (0,), (0, 1)]))
def test_scales_are_positive_and_bounded(seed, dead, one_step):
    torch.manual_seed(seed)
    kernel, amax = torch.randn(4, 4), torch.rand(4) + 0.01
    if dead:
        kernel[:, 1] = 0.0
        kernel[2] = 0.0
    chain = Chain(
        torch.randn(4, 3), kernel, torch.randn(2, 4), diagonals={1: kernel.diagonal()}, amax=amax, one_step=one_step
    )
    for factor in chain.scales("residual", iterations=50):
        assert factor.isfinite().all()
        assert (factor > 0).all()
        assert factor.max() <= 64 * (1 + 1e-12)
        assert factor.min() >= 1 / 64 * (1 - 1e-12)


def test_without_noise_the_scales_stay():
    tensor = TensorStatistics(
        channels=torch.tensor([0]), high=torch.zeros(1), low=torch.zeros(1), gain=torch.ones(1, dtype=torch.float64)
    )
    layer = LayerStatistics(
        inputs=torch.tensor([0]),
        outputs=torch.tensor([-1]),
        magnitude=torch.zeros(1, 1, 1, dtype=torch.float64),
        diagonal=None,
        seen=torch.zeros(1, 1, 1, dtype=torch.float64),
        variance=torch.ones(1, dtype=torch.float64),
        gain=torch.ones(1, dtype=torch.float64),
        taps=1,
    )
    assert minimize_noise([layer], [tensor], 1, weight_steps=127, activation_steps=127).tolist() == [1.0]
