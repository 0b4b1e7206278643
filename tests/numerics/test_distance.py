import math

import pytest
import torch

from repquant.numerics.distance import cosine, softmax_kl, sqnr_db


def test_sqnr_of_a_tenth_is_twenty_db():
    assert sqnr_db(torch.tensor([1.0, 1.0]), torch.tensor([1.1, 0.9])) == pytest.approx(20.0, abs=1e-5)


def test_sqnr_of_equal_tensors_is_infinite():
    assert sqnr_db(torch.ones(3), torch.ones(3)) == math.inf
    assert sqnr_db(torch.zeros(3), torch.ones(3)) == -math.inf


def test_kl_by_hand():
    p, q = torch.tensor([[0.0, math.log(3.0)]]), torch.tensor([[0.0, 0.0]])
    assert softmax_kl(p, q).item() == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))
    assert softmax_kl(p, p + 7.0).item() == pytest.approx(0.0, abs=1e-12)


def test_cosine():
    assert cosine(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])) == pytest.approx(math.sqrt(0.5))
    assert cosine(torch.zeros(2), torch.zeros(2)) == 1.0
    assert cosine(torch.zeros(2), torch.ones(2)) == 0.0
