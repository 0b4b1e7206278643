import pytest
import torch
from torch import nn

import repquant as rq
from repquant.errors import InputError
from repquant.graph.capture import capture
from repquant.graph.layout import find_layout
from repquant.graph.run import run
from repquant.methods.calibrate import collect_histograms, find_ranges
from repquant.methods.default_calibrator import default_calibrator
from repquant.methods.divergence import Comparison
from repquant.methods.loss_aware import _direction, candidate_ranges, choose_ranges
from repquant.numerics.affine import grid_for_range
from repquant.numerics.distance import softmax_kl
from repquant.numerics.histogram import Histogram
from repquant.numerics.ranges import search_range
from repquant.simulation.layers import FakeQuantize
from repquant.targets.target import resolve_target

TARGET = resolve_target("onnxruntime", fast_int8_dot=True)


class Joined(nn.Module):
    """Two branches whose values are read together, with rare large ones in front of an average."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 6, 1)
        self.last, self.head = nn.Conv2d(12, 16, 1), nn.Linear(16, 5)

    def forward(self, x):
        joined = torch.cat([torch.relu(self.first(x)), nn.functional.silu(self.second(x))], 1)
        return self.head(nn.functional.silu(self.last(joined)).pow(3).mean((2, 3)))


@pytest.fixture(scope="module")
def prepared():
    images = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    graph = capture(Joined().eval(), images[:2])
    layout = find_layout(graph, TARGET)
    return graph, layout, [images[:10], images[10:]], collect_histograms(graph, layout, [images])


def harm(graph, layout, name, ends, batches):
    """What a tensor does by itself, by another road: observers that put its rounded value in its place."""
    quantize = FakeQuantize(grid_for_range(*ends, TARGET.activation))
    comparison = Comparison("it")
    for batch in batches:
        comparison.add(run(graph, batch), run(graph, batch, dict.fromkeys(layout.tensors[name].sources, quantize)))
    return comparison.result().harm


def test_the_range_that_changes_the_outputs_least_is_taken_for_each_tensor(prepared):
    graph, layout, batches, _ = prepared
    candidates = dict.fromkeys(layout.tensors, ((0.0, 0.5), (-0.3, 2.0), (-8.0, 8.0), (-0.4, 40.0)))
    read = []
    with torch.inference_mode():
        chosen = choose_ranges(graph, layout, candidates, TARGET, batches, read.append)
        for name in layout.tensors:
            losses = [harm(graph, layout, name, ends, batches) for ends in candidates[name]]
            assert chosen[name] == candidates[name][losses.index(min(losses))]
    assert read == [10, 6]
    assert len(set(chosen.values())) > 2
    assert any(len(tensor.sources) == 2 for tensor in layout.tensors.values())


def test_of_candidates_alike_the_first_is_taken(prepared):
    graph, layout, batches, _ = prepared
    ends = dict.fromkeys(layout.tensors, ((-1.0, 3.0), (-1.0, 3.0)))
    assert set(choose_ranges(graph, layout, ends, TARGET, batches).values()) == {(-1.0, 3.0)}


def test_the_range_of_mse_comes_first_and_none_is_tried_twice():
    tailed, uniform = Histogram(), Histogram()
    tailed.update(torch.randn(100_000, generator=torch.Generator().manual_seed(0)).pow(3))
    uniform.update(torch.linspace(0, 1, 10_000))
    ranges = candidate_ranges(tailed, TARGET)
    assert ranges[0] == search_range("mse", tailed, TARGET.activation)
    assert search_range("max", tailed, TARGET.activation) in ranges
    assert search_range("percentile", tailed, TARGET.activation, percentile=99.9) in ranges
    assert len(set(ranges)) == len(ranges) > 3
    assert candidate_ranges(uniform, TARGET) == (search_range("mse", uniform, TARGET.activation),)


class Shared(nn.Module):
    """A value that a layer reads rounded and a logarithm, on this target, as a float."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 1)

    def forward(self, x):
        value = torch.relu(self.first(x)) + 1e-3
        return self.second(value).mean((2, 3)) + value.log().mean((1, 2, 3)).unsqueeze(1)


def test_what_reads_a_value_in_float_reads_it_so():
    images = torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    int8 = rq.quantize(Shared().eval(), [images], target=TARGET, calibrator="loss-aware")
    assert torch.isfinite(int8(images)).all()


def test_an_image_with_an_infinite_slope_does_not_count():
    class Roots(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first, self.second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)

        def forward(self, x):
            return self.second(self.first(x)).abs().sqrt()

    images, black = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), torch.zeros(1, 4)
    graph = capture(Roots().eval(), images[:2])
    layout = find_layout(graph, TARGET)
    candidates = dict.fromkeys(layout.tensors, ((-100.0, 100.0), (-3.0, 3.0)))
    assert set(choose_ranges(graph, layout, candidates, TARGET, [images, black]).values()) == {(-3.0, 3.0)}
    assert set(choose_ranges(graph, layout, candidates, TARGET, [black]).values()) == {(-100.0, 100.0)}


def test_an_operator_without_a_derivative_is_an_error():
    class Copied(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            y = self.layer(x)
            y[:, 0] = nn.functional.silu(y[:, 1])
            return y

    images = torch.randn(8, 4)
    graph = capture(Copied().eval(), images[:2])
    layout = find_layout(graph, TARGET)
    with pytest.raises(InputError, match=r"can't be differentiated.*such as mse"):
        choose_ranges(graph, layout, dict.fromkeys(layout.tensors, ((-1.0, 1.0), (-3.0, 3.0))), TARGET, [images])
    assert default_calibrator(graph, TARGET) == "mse"


def test_inputs_that_are_no_images_come_with_each_image():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x, factor, weights):
            return self.layer(x * factor) * weights

    batch = (torch.randn(8, 4), torch.tensor(2.0), torch.randn(3, 8, 1)[:, :1, 0].T)
    int8 = rq.quantize(Scaled().eval(), [batch], target=TARGET, calibrator="loss-aware")
    assert int8(*batch).shape == (8, 3)


@pytest.mark.parametrize("kind", ["logits", "map"])
def test_the_square_of_a_change_along_the_vectors_is_on_average_what_it_does(kind):
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(1, 6, generator=generator) * 2
    change = torch.randn(1, 6, generator=generator) * 1e-3
    if kind == "logits":
        expected = softmax_kl(output.double(), (output + change).double())
    else:
        output, change = output.reshape(1, 2, 3), change.reshape(1, 2, 3)
        expected = change.square().sum() / output.square().sum()
    draws = torch.stack([_direction(output, generator) for _ in range(20_000)])
    assert (draws * change).flatten(1).sum(1).square().mean() == pytest.approx(float(expected), rel=0.03)


def test_outputs_that_autograd_does_not_know_decide_nothing():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(x).argmax(1)

    images = torch.randn(8, 4)
    graph = capture(Named().eval(), images[:2])
    layout = find_layout(graph, TARGET)
    candidates = dict.fromkeys(layout.tensors, ((0.0, 1000.0), (0.0, 1.5)))
    assert set(choose_ranges(graph, layout, candidates, TARGET, [images]).values()) == {(0.0, 1000.0)}


def test_batches_make_no_difference(prepared):
    graph, layout, batches, _ = prepared
    candidates = dict.fromkeys(layout.tensors, ((0.0, 0.5), (-0.3, 2.0), (-8.0, 8.0), (-0.4, 40.0)))
    chosen = choose_ranges(graph, layout, candidates, TARGET, batches)
    assert chosen == choose_ranges(graph, layout, candidates, TARGET, [torch.cat(batches)])
    assert len(set(chosen.values())) > 2


def test_a_range_counts_by_what_it_does_to_an_average():
    """Clipped peaks are lost to the mean of many values, and roundings that cancel are not."""

    class Averaged(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(64, 2, bias=False)
            self.layer.weight.data = torch.tensor([[1.0], [-1.0]]).expand(2, 64) / 64

        def forward(self, x):
            return self.layer(x)

    values = torch.linspace(0, 1, 63)
    images = torch.cat([values, torch.tensor([3.0])]).expand(8, 64).contiguous()
    graph = capture(Averaged().eval(), images[:2])
    layout = find_layout(graph, TARGET)
    (name,) = layout.tensors
    chosen = choose_ranges(graph, layout, {name: ((0.0, 1.0), (0.0, 3.0))}, TARGET, [images])
    assert chosen == {name: (0.0, 3.0)}


def test_without_images_nothing_is_chosen(prepared):
    graph, layout, _, histograms = prepared
    with pytest.raises(InputError, match="no images to compare ranges on"):
        find_ranges("loss-aware", graph, layout, histograms, TARGET, [])


def test_quantize_takes_it_as_a_calibrator_and_tells_of_its_progress():
    images = [torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(10)]
    steps = {}
    int8 = rq.quantize(
        Joined().eval(),
        images,
        target=TARGET,
        calibrator="loss-aware",
        on_progress=lambda step, done: steps.setdefault(step, []).append(done),
    )
    assert steps["choose ranges"] == [8] * 8  # 64 of 80 images
    assert set(int8.plan.grids) == set(int8.plan.layout.tensors)
