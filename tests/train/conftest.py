"""The small things of `tiny.py` as fixtures."""

from collections.abc import Callable, Iterator

import pytest
import torch
from tiny import NoiseSource, make_trainer, plan

from repquant.train.loop import Trainer
from repquant.train.recipe import Recipe


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks as small as these are slower with more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def noise() -> type[NoiseSource]:
    return NoiseSource


@pytest.fixture
def recipe() -> Callable[..., Recipe]:
    """A recipe for 32 small images, with changes."""
    return plan


@pytest.fixture
def trainer() -> Callable[..., Trainer]:
    """A trainer at the beginning; other images or initial weights on request."""
    return make_trainer
