import pytest
import torch

from repquant.graph.copies import copy_graph
from repquant.qat.distillation import block_error, distillation_loss, output_loss, relative_error
from repquant.qat.taps import Taps


def test_distillation_by_hand():
    logits, aim = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, float(torch.log(torch.tensor(3.0)))]])
    expected = 0.25 * torch.log(torch.tensor(0.5)) + 0.75 * torch.log(torch.tensor(1.5))
    assert float(distillation_loss(logits, aim)) == pytest.approx(float(expected), abs=1e-6)
    assert float(distillation_loss(aim, aim, temperature=3.0)) == pytest.approx(0.0, abs=1e-6)


def test_a_temperature_keeps_the_size_of_the_gradient():
    aim = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    gradients = []
    for temperature in (1.0, 100.0):
        logits = torch.zeros(4, 5, requires_grad=True)
        distillation_loss(logits, 0.01 * aim, temperature).backward()
        gradients.append(logits.grad)
    assert torch.allclose(*gradients, rtol=0.05, atol=1e-6)


def test_outputs_that_are_no_logits_count_by_their_squares():
    logits, aim = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    maps, aims = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[1.0, 4.0]]])
    assert float(relative_error(maps, aims)) == pytest.approx(4 / 17)
    expected = float(distillation_loss(logits, aim)) + 4 / 17
    assert float(output_loss([logits, maps], [aim, aims])) == pytest.approx(expected)
    assert float(relative_error(aims, torch.zeros_like(aims))) > 1e30  # nothing is near to zeros, and nothing is NaN


def test_block_error_by_hand():
    aim = torch.tensor([[3.0, 4.0], [2.0, 0.0], [0.0, 0.0]]).reshape(1, 3, 1, 2)
    output = torch.tensor([[6.0, 8.0], [1.0, 1.0], [1.0, 1.0]]).reshape(1, 3, 1, 2).requires_grad_()
    # The first is the aim twice as large, the second half of it and (0, 1) off, the third has no aim.
    error = block_error(output, aim)
    assert float(error.detach()) == pytest.approx((0.0**2 + 2.0**2) / (25 + 4))
    error.backward()
    assert output.grad[0, 2].tolist() == [[0.0, 0.0]]
    assert block_error(torch.zeros_like(aim), torch.zeros_like(aim)) == 0


def test_taps_show_values_and_change_nothing(mixed, images):
    tapped = copy_graph(mixed)
    before = tapped.state_dict().keys()
    taps = Taps(tapped, ["body"])
    with torch.no_grad(), taps.values() as values:
        found = tapped(images)
    assert values.keys() == {"body"}
    assert values["body"].shape == (8, 8, 10, 10)
    assert tapped.state_dict().keys() == before
    assert not any(module._forward_hooks for module in tapped.modules())
    with torch.no_grad():
        assert torch.equal(found["logits"], mixed(images)["logits"])
