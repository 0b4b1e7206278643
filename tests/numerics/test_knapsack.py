"""The knapsack with several choices: by hand, and against all selections."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repquant.errors import InputError
from repquant.numerics import knapsack
from repquant.numerics.knapsack import cheapest_choices


def test_by_hand():
    """Layers of 10, 30 and 20 weights in 4 or 8 bits, at most 6 bits on average: 360 bits of 240 to 480.

    The second alone would gain most, 7, and fills the budget. The first and the third gain 8 together, and fill it too.
    """
    sizes = [[40, 80], [120, 240], [80, 160]]
    costs = [[5.0, 1.0], [8.0, 1.0], [6.0, 2.0]]
    assert cheapest_choices(sizes, costs, 360) == (1, 0, 1)
    assert cheapest_choices(sizes, costs, 359) == (1, 0, 0), "a bit less: the two no longer fit, nor the second"
    assert cheapest_choices(sizes, costs, 240) == (0, 0, 0)
    assert cheapest_choices(sizes, costs, 480) == (1, 1, 1)
    assert cheapest_choices(sizes, costs, 10**9) == (1, 1, 1)


def test_where_the_gain_for_each_bit_misleads():
    """The first gains 3 for 1 more, the second 10 for 4 more: taken in the order of that, the second no longer fits."""
    assert cheapest_choices([[1, 2], [1, 5]], [[3.0, 0.0], [10.0, 0.0]], 6) == (0, 1)


def test_of_equal_costs_the_smaller_is_taken():
    assert cheapest_choices([[4, 8], [4, 8]], [[1.0, 1.0], [0.0, 0.0]], 16) == (0, 0)
    assert cheapest_choices([[4, 8]], [[1.0, 2.0]], 16) == (0,), "more bits may lose more"


def test_nothing_to_choose():
    assert cheapest_choices([], [], 0) == ()
    assert cheapest_choices([[7]], [[1.0]], 7) == (0,)


def test_a_budget_below_the_smallest_choices():
    with pytest.raises(InputError, match="a budget of 239 was given; the smallest choices take 240 already"):
        cheapest_choices([[40, 80], [200, 400]], [[1.0, 0.0], [1.0, 0.0]], 239)


@st.composite
def problems(draw):
    """Up to 5 items with 1 to 3 choices, and a budget that the smallest of them fit into."""
    items = draw(st.integers(1, 5))
    choice = st.tuples(st.integers(0, 50), st.floats(0, 10))
    chosen = [draw(st.lists(choice, min_size=1, max_size=3)) for _ in range(items)]
    sizes, costs = ([[each[place] for each in item] for item in chosen] for place in (0, 1))
    least = sum(map(min, sizes))
    return sizes, costs, draw(st.integers(least, least + 120))


@given(problems())
def test_never_above_the_budget_and_never_worse_than_all_selections(problem):
    sizes, costs, budget = problem
    choices = cheapest_choices(sizes, costs, budget)
    size, cost = (sum(own[choice] for own, choice in zip(kind, choices, strict=True)) for kind in (sizes, costs))
    assert size <= budget
    best = min(
        sum(own[choice] for own, choice in zip(costs, selection, strict=True))
        for selection in product(*(range(len(own)) for own in sizes))
        if sum(own[choice] for own, choice in zip(sizes, selection, strict=True)) <= budget
    )
    assert cost == pytest.approx(best)


def test_a_large_network_takes_no_time():
    """200 layers of sizes without a common step: the number of sums of sizes is beyond counting."""
    sizes = [[4 * count, 8 * count] for count in range(1_000_003, 1_200_003, 1_000)]
    costs = [[float(1 + place * 7919 % 101), 0.01] for place in range(200)]
    choices = cheapest_choices(sizes, costs, sum(four + four // 8 for four, _ in sizes))
    assert 0 < sum(choices) < 200


def test_many_selections_of_similar_size_stay_few_and_within_the_budget(monkeypatch):
    """Costs that fall with the size leave all selections worth going on with: their number doubles with each layer."""
    monkeypatch.setattr(knapsack, "SELECTIONS", 64)
    counts = [1000 + 37 * i * i % 977 for i in range(40)]
    sizes = [[4 * count, 8 * count] for count in counts]
    costs = [[float(count), 0.0] for count in counts]
    budget = int(5.5 * sum(counts))
    choices = cheapest_choices(sizes, costs, budget)
    size = sum(own[choice] for own, choice in zip(sizes, choices, strict=True))
    cost = sum(own[choice] for own, choice in zip(costs, choices, strict=True))
    assert size <= budget
    least = sum(counts) - (budget - 4 * sum(counts)) / 4  # each weight that gets its 4 bits more saves 1
    assert cost <= 1.05 * least


def test_the_smallest_selection_is_never_lost(monkeypatch):
    monkeypatch.setattr(knapsack, "SELECTIONS", 2)
    sizes = [[1, 2 + i] for i in range(12)]
    costs = [[1.0, 0.5 / (1 + i)] for i in range(12)]
    assert cheapest_choices(sizes, costs, 12) == (0,) * 12
