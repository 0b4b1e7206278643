import pytest
import torch

from repquant.numerics.missing_outputs import MissingOutputs, correct_weights
from repquant.numerics.second_moments import SecondMoments


def corrected(weight, inputs, lacking, *, central=True, parts=3, counts=None):
    counts = torch.ones(len(inputs)) if counts is None else counts
    seen, missing = SecondMoments(), MissingOutputs()
    for rows, other, count in zip(inputs.chunk(parts), lacking.chunk(parts), counts.chunk(parts), strict=True):
        seen.update(rows, count)
        missing.update(rows, other, count)
    moments = seen.moments(central=central), missing.moments(central=central)
    return correct_weights(weight, *moments, seen.mean(), len(inputs))


def noisy(rows, *, columns=12, seed=0):
    """Inputs that are all made of two factors, and what is left of them after rounding."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(2, columns, generator=torch.Generator().manual_seed(1))
    exact = torch.randn(rows, 2, generator=generator) @ mixing
    return exact, exact + 0.5 * torch.randn(rows, columns, generator=generator)


def outputs(inputs, weight):
    return torch.einsum("rgk,gpk->rgp", inputs, weight).flatten(1)


@pytest.mark.parametrize("central", [True, False])
def test_the_correction_is_that_of_ridge_regression(central):
    exact, given = (1 + part[:, None] for part in noisy(400))
    weight = torch.randn(1, 3, 12, generator=torch.Generator().manual_seed(2))
    lacking = outputs(exact - given, weight)
    found = corrected(weight, given, lacking, central=central)
    x, y = given[:, 0].double(), lacking.double()
    if central:
        x, y = x - x.mean(0), y - y.mean(0)
    ridge = 12 / (400 * 0.1) * x.square().mean() * 400
    wanted = weight[0] + torch.linalg.solve(x.T @ x + ridge * torch.eye(12), x.T @ y).T
    assert torch.allclose(torch.cosine_similarity(found[0].double(), wanted, 1), torch.ones(3).double())


def test_outputs_come_closer_on_other_rows_and_keep_their_slope():
    weight = torch.randn(1, 3, 12, generator=torch.Generator().manual_seed(2))
    exact, given = (part[:, None] for part in noisy(4000))
    found = corrected(weight, given, outputs(exact - given, weight))
    fitted = [(outputs(given, each), outputs(exact, weight)) for each in (weight, found)]
    slopes = [torch.cov(torch.cat([x, y], 1).T)[range(3), range(3, 6)] for x, y in fitted]
    assert torch.allclose(*slopes, rtol=1e-4)
    exact, given = (part[:, None] for part in noisy(4000, seed=3))
    wanted = outputs(exact, weight)
    before, after = outputs(given, weight), outputs(given, found)
    assert ((after - wanted).square().mean(0) < 0.5 * (before - wanted).square().mean(0)).all()


def test_few_rows_that_say_nothing_do_little_harm():
    generator = torch.Generator().manual_seed(0)
    inputs, lacking = torch.randn(64, 1, 48, generator=generator), torch.randn(64, 2, generator=generator)
    weight = torch.randn(1, 2, 48, generator=generator)
    change = corrected(weight, inputs, lacking) - weight
    assert outputs(torch.randn(1000, 1, 48, generator=generator), change).square().mean() < 0.05


def test_inputs_that_give_all_keep_the_weights():
    weight = torch.randn(2, 3, 12)
    inputs = torch.randn(50, 2, 12)
    assert torch.equal(corrected(weight, inputs, torch.zeros(50, 6)), weight)


def test_groups_are_corrected_each_for_itself():
    exact, given = (torch.stack(parts, 1) for parts in zip(noisy(300), noisy(300, seed=5), strict=True))
    weight = torch.randn(2, 3, 12, generator=torch.Generator().manual_seed(2))
    lacking = outputs(exact - given, weight)
    together = corrected(weight, given, lacking)
    for group in range(2):
        part = slice(group, group + 1)
        alone = corrected(weight[part], given[:, part], lacking[:, 3 * group : 3 * group + 3])
        assert torch.allclose(together[part], alone, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.3, -1e4])
@pytest.mark.parametrize("seed", range(5))
def test_inputs_that_never_vary_keep_the_weights(value, seed):
    generator = torch.Generator().manual_seed(seed)
    weight, counts = torch.randn(2, 3, 9, generator=generator), torch.rand(60, generator=generator)
    inputs, lacking = torch.full((60, 2, 9), value), torch.randn(60, 6, generator=generator)
    assert torch.allclose(corrected(weight, inputs, lacking, counts=counts), weight, atol=1e-2)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_outputs_that_are_no_numbers(value):
    lacking = torch.zeros(50, 3)
    lacking[7, 1] = value
    with pytest.raises(FloatingPointError, match="not finite"):
        corrected(torch.randn(1, 3, 12), torch.randn(50, 1, 12), lacking)


@pytest.mark.parametrize("central", [True, False])
def test_rows_count_as_their_weights_say(central):
    inputs, lacking = 1 + torch.randn(40, 1, 12), 2 + torch.randn(40, 3)
    missing, twice = MissingOutputs(), MissingOutputs()
    missing.update(inputs, lacking, torch.cat([torch.full((20,), 2.0), torch.ones(20)]))
    twice.update(torch.cat([inputs, inputs[:20]]), torch.cat([lacking, lacking[:20]]), torch.ones(60))
    assert torch.allclose(missing.moments(central=central), twice.moments(central=central), rtol=1e-4, atol=1e-5)
