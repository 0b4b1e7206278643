import pytest
import torch

from repquant.errors import InputError
from repquant.graph.shelf import Shelf


@pytest.fixture
def values():
    return [
        torch.randn(3, 4, 5),
        torch.arange(7, dtype=torch.int16),
        torch.tensor(2.5),
        torch.randn(4, 6).T,
        torch.tensor([True, False]),
        torch.zeros(2, 0),
    ]


@pytest.mark.parametrize("memory", [0, 250, 1 << 20])
def test_what_comes_back_is_what_was_put_there(values, memory):
    with Shelf(memory) as shelf:
        kept = shelf.put({"values": values, "size": 3})
        for _ in range(2):
            got = shelf.get(kept)
            assert got["size"] == 3
            for value, back in zip(values, got["values"], strict=True):
                assert back.dtype == value.dtype
                assert torch.equal(back, value)


def test_memory_stays_within_its_budget_and_room_is_used_again():
    with Shelf(1000) as shelf:
        for _ in range(5):
            kept = [shelf.put(torch.randn(100)) for _ in range(10)]
            assert shelf.in_memory == 800
            assert shelf._end <= 8 * 400
            shelf.drop(kept)
        assert shelf.in_memory == 0


def test_a_full_disk(monkeypatch):
    def no_room(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("repquant.graph.shelf.tempfile.TemporaryFile", no_room)
    with Shelf(0) as shelf, pytest.raises(InputError, match=r"No space left .* TMPDIR .* or give fewer images"):
        shelf.put(torch.zeros(3))
