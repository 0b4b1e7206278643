import torch

from repquant.quant.segments import swap_each


def test_alternatives_take_their_segments_place_and_what_is_before_them_runs_once():
    calls = []

    def first(x):
        calls.append("first")
        return x + 1

    def double(x):
        return 2 * x

    whole, swapped = swap_each(
        [first, double, torch.neg],
        [{"zero": torch.zeros_like}, {"keep": lambda x: x, "triple": lambda x: 3 * x}, {}],
        torch.tensor([1.0, 5.0]),
    )
    assert whole.tolist() == [-4, -12]
    assert {name: y.tolist() for name, y in swapped.items()} == {
        "zero": [0, 0],
        "keep": [-2, -6],
        "triple": [-6, -18],
    }
    assert calls == ["first"]
