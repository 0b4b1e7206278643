import math

import pytest
import torch

from repquant.errors import InputError
from repquant.models.network import RepVGG, build, count_multiply_adds, count_parameters
from repquant.models.spec import Form
from repquant.models.zoo import ARCHITECTURES, PUBLISHED, builtin_weights, get_spec

COUNTED = [name for name, figures in PUBLISHED.items() if figures.parameters_millions is not None]

TRAINING_FORM_MILLIONS = {"A2": 28.21, "B0": 15.82, "B1": 57.42, "B1g4": 39.97}
"""Parameters in timm's benchmark tables."""


def on_meta(name: str, form: Form) -> RepVGG:
    with torch.device("meta"):
        return build(name, 1000, form)


def test_zoo_is_complete() -> None:
    variants = {"tiny", "A0", "A1", "A2", "B0", "B1", "B1g2", "B1g4"}
    variants |= {"B2", "B2g2", "B2g4", "B3", "B3g2", "B3g4", "D2se"}
    assert ARCHITECTURES.keys() == {f"RepVGG-{variant}" for variant in variants}
    assert all(name == spec.name for name, spec in ARCHITECTURES.items())
    assert PUBLISHED.keys() == ARCHITECTURES.keys() - {"RepVGG-tiny", "RepVGG-B2g2", "RepVGG-B3g2"}


@pytest.mark.parametrize("name", COUNTED)
def test_deploy_form_has_the_published_parameters_and_multiply_adds(name: str) -> None:
    model = on_meta(name, "deploy")
    figures = PUBLISHED[name]
    assert math.floor(count_parameters(model) / 1e4) / 100 == figures.parameters_millions
    assert round(count_multiply_adds(model, 224) / 1e9, 1) == figures.multiply_adds_billions


@pytest.mark.parametrize("name", TRAINING_FORM_MILLIONS)
def test_training_form_has_the_parameters_of_timm(name: str) -> None:
    model = on_meta(f"RepVGG-{name}", "training")
    assert round(count_parameters(model) / 1e6, 2) == TRAINING_FORM_MILLIONS[name]


def test_grouped_variants_lie_between_their_neighbours() -> None:
    counts = [count_parameters(on_meta(f"RepVGG-B3{suffix}", "deploy")) for suffix in ("g4", "g2", "")]
    assert counts == sorted(counts)


def test_tiny_is_tiny() -> None:
    model = build("RepVGG-tiny", 10, "deploy")
    assert 250_000 < count_parameters(model) < 350_000
    assert count_multiply_adds(model, 32) < 3e6


@pytest.mark.parametrize(
    ("typed", "meant"), [("repvgg_b1g4", "RepVGG-B1g4"), ("A0", "RepVGG-A0"), ("RepVGG-D2", "RepVGG-D2se")]
)
def test_unknown_name_is_refused_with_the_nearest(typed: str, meant: str) -> None:
    with pytest.raises(InputError, match=f"unknown architecture '{typed}'; did you mean {meant}\\? The zoo has"):
        get_spec(typed)


def test_name_that_is_near_to_none_gets_the_list() -> None:
    with pytest.raises(InputError, match="'x'; The zoo has RepVGG-tiny, RepVGG-A0, "):
        get_spec("x")


def test_builtin_weights_are_named_after_their_architecture() -> None:
    assert builtin_weights().name == "repvgg-tiny.safetensors"
    assert builtin_weights().parent.name == "weights"
