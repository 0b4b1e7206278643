import pytest
import torch
from torch import nn

from repquant.errors import InputError
from repquant.models.network import RepVGG, build, count_multiply_adds, count_parameters
from repquant.models.spec import ArchSpec

SMALL = ArchSpec(name="small", blocks=(1, 2, 1, 1), widths=(0.25, 0.25, 0.125, 0.125))


@pytest.mark.parametrize("form", ["training", "deploy"])
@pytest.mark.parametrize("size", [(33, 47), (64, 32), (1, 1)])
def test_images_of_any_size_and_aspect_ratio(form, size) -> None:
    model = build(SMALL, num_classes=5, form=form).eval()
    assert model(torch.randn(2, 3, *size)).shape == (2, 5)


@pytest.mark.parametrize("form", ["training", "deploy"])
def test_form_is_that_of_the_constructor(form) -> None:
    model = build(SMALL, num_classes=5, form=form)
    assert model.form == form
    with pytest.raises(AttributeError):
        model.form = "deploy"


def test_build_takes_a_name_of_the_zoo() -> None:
    model = build("RepVGG-tiny", 10)
    assert isinstance(model, RepVGG)
    assert (model.spec.name, model.num_classes, model.form) == ("RepVGG-tiny", 10, "training")


def test_initial_weights_follow_the_global_seed() -> None:
    torch.manual_seed(3)
    first = build(SMALL, 5).state_dict()
    torch.manual_seed(3)
    again = build(SMALL, 5).state_dict()
    other = build(SMALL, 5).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


@pytest.mark.parametrize("num_classes", [0, -1])
def test_class_count_must_be_positive(num_classes: int) -> None:
    with pytest.raises(InputError, match=f"number of classes is {num_classes}; give a positive number"):
        build(SMALL, num_classes)


def test_unknown_name_is_refused() -> None:
    with pytest.raises(InputError, match="did you mean RepVGG-A0"):
        build("RepVGGA0", 10)


def test_counts_by_hand() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 4, 3, padding=1, groups=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 10),
    )
    assert count_parameters(model) == 3 * 8 * 9 + 2 * 8 + (4 * 4 * 9 + 4) + (40 + 10)
    assert count_multiply_adds(model, 11) == 36 * 8 * 3 * 9 + 36 * 4 * 4 * 9 + 40


def test_counting_leaves_the_model_alone() -> None:
    model = build(SMALL, 5).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    count_multiply_adds(model, 32)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_squeeze_excite_adds_two_pointwise_convolutions_a_block() -> None:
    with_se = ArchSpec(name="se", blocks=(1, 2, 1, 1), widths=SMALL.widths, squeeze_excite=True)
    channels = [16] + [16] + [32] * 2 + [32] + [64]
    extra = sum(2 * c * (c // 16) + c // 16 + c for c in channels)
    assert count_parameters(build(with_se, 5)) - count_parameters(build(SMALL, 5)) == extra
