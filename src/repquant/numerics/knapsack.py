"""The knapsack problem with several choices for each item: one of them each, at the least cost within a budget.

By dynamic programming over the partial selections that are worth going on with: those for which no other one is both
smaller and cheaper (Nemhauser and Ullmann, "Discrete Dynamic Programming and Capital Allocation", Management Science
1969). The choice is exact as long as these are few; where many differ by next to nothing in size, as costs that grow
with the sizes make them, only the cheapest of such a group goes on. The budget holds in any case.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from repquant.errors import InputError

SELECTIONS = 1 << 16
"""Partial selections that go on, at most; more than these are told apart only by size in so many steps."""


def cheapest_choices(sizes: Sequence[Sequence[int]], costs: Sequence[Sequence[float]], budget: int) -> tuple[int, ...]:
    """Return the index of the choice for each item: the sum of their costs is the least that the budget allows.

    Of selections that cost the same, a smallest one is taken. With more than `SELECTIONS` partial selections after an
    item, those that differ in size by less than a 65,536th of their range are taken for one, and the sum may be larger.

    Args:
        sizes: of the choices of each item, 0 or more.
        costs: of the same, finite.
        budget: largest sum of sizes.

    Raises:
        InputError: a budget that even the smallest choices exceed.
    """
    least = [min(own) for own in sizes]
    if sum(least) > budget:
        raise InputError(f"a budget of {budget:,} was given; the smallest choices take {sum(least):,} already")
    still_to_come = sum(least)
    size, cost = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.float64)
    kept_by_item: list[Tensor] = []
    for own_sizes, own_costs, smallest in zip(sizes, costs, least, strict=True):
        still_to_come -= smallest
        size = (size[:, None] + torch.tensor(own_sizes)).flatten()
        cost = (cost[:, None] + torch.tensor(own_costs, dtype=torch.float64)).flatten()
        kept = _worth_keeping(size, cost, budget - still_to_come)
        size, cost = size[kept], cost[kept]
        kept_by_item.append(kept)
    return _walked_back(kept_by_item, [len(own) for own in sizes])


def _worth_keeping(size: Tensor, cost: Tensor, most: int) -> Tensor:
    """Return the indices (K,) of what fits and costs less than all that is as small, from the smallest to the largest.

    Args:
        size: (N,) int64.
        cost: (N,) float64.
        most: largest size that fits.
    """
    by_cost = cost.argsort(stable=True)
    order = by_cost[size[by_cost].argsort(stable=True)]
    order = order[size[order] <= most]
    lowest = cost[order].cummin(0).values
    is_cheaper = torch.ones(len(order), dtype=torch.bool)
    is_cheaper[1:] = lowest[1:] < lowest[:-1]
    order = order[is_cheaper]
    return order if len(order) <= SELECTIONS else order[_is_kept(size[order])]


def _is_kept(size: Tensor) -> Tensor:
    """Return (N,) bool: the last, which is the cheapest, of each group of similar sizes, and the smallest of all.

    Args:
        size: (N,) int64, rising.
    """
    group = (size - size[0]) * (SELECTIONS - 1) // (size[-1] - size[0])
    is_kept = torch.ones(len(size), dtype=torch.bool)
    is_kept[1:-1] = group[1:-1] != group[2:]
    return is_kept


def _walked_back(kept_by_item: Sequence[Tensor], counts: Sequence[int]) -> tuple[int, ...]:
    """Return the choices that led to the last selection, the cheapest one."""
    choices = []
    position = -1
    for kept, count in zip(reversed(kept_by_item), reversed(counts), strict=True):
        position, choice = divmod(int(kept[position]), count)
        choices.append(choice)
    return tuple(reversed(choices))
