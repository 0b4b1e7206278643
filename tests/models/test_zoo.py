import math
from dataclasses import replace

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
    variants |= {"B2", "B2g2", "B2g4", "B3", "B3g2", "B3g4", "half"}
    plain = {variant for variant in variants if "g" not in variant} | {"L1", "L2"}
    names = {f"RepVGG-{variant}" for variant in variants | {"D2se"}} | {"RepVGGplus-L2pse"}
    names |= {f"QARepVGG-{variant}" for variant in variants}
    names |= {f"RepOpt-VGG-{variant}{suffix}" for variant in plain for suffix in ("", "-search")}
    assert ARCHITECTURES.keys() == names
    assert all(name == spec.name for name, spec in ARCHITECTURES.items())
    published = {name for name in ARCHITECTURES if name.startswith("RepVGG")} & PUBLISHED.keys()
    unpublished = {"RepVGG-tiny", "RepVGG-half", "RepVGG-B2g2", "RepVGG-B3g2"}
    assert published == {name for name in ARCHITECTURES if name.startswith("RepVGG")} - unpublished
    assert PUBLISHED.keys() < ARCHITECTURES.keys()


def test_variants_differ_from_repvgg_in_their_blocks_alone() -> None:
    kinds = {"QARepVGG-A0": "qarepvgg", "RepOpt-VGG-A0": "repopt", "RepOpt-VGG-A0-search": "repopt-search"}
    for name, kind in kinds.items():
        assert get_spec(name) == replace(get_spec("RepVGG-A0"), name=name, block=kind)
    assert get_spec("QARepVGG-B1g4").groups == 4


@pytest.mark.parametrize("prefix", ["QARepVGG", "RepOpt-VGG"])
def test_deploy_form_of_a_variant_costs_what_the_repvgg_costs(prefix: str) -> None:
    assert count_parameters(on_meta(f"{prefix}-A0", "deploy")) == count_parameters(on_meta("RepVGG-A0", "deploy"))


@pytest.mark.parametrize(("name", "millions"), [("L1", 76.0), ("L2", 118.1)])
def test_repopt_has_the_parameters_that_its_authors_report(name: str, millions: float) -> None:
    assert round(count_parameters(on_meta(f"RepOpt-VGG-{name}", "deploy")) / 1e6, 1) == millions


def test_half_is_half_as_wide_as_a0() -> None:
    half, whole = get_spec("RepVGG-half"), get_spec("RepVGG-A0")
    assert half.blocks == whole.blocks
    assert [2 * stage[0].out_channels for stage in half.stages] == [stage[0].out_channels for stage in whole.stages]


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
    ("typed", "meant"),
    [("repvgg_b1g4", "RepVGG-B1g4"), ("A0", "RepVGG-A0"), ("RepVGG-D2", "RepVGG-D2se"), ("repopt-a0", "RepOpt-VGG-A0")],
)
def test_unknown_name_is_refused_with_the_nearest(typed: str, meant: str) -> None:
    with pytest.raises(InputError, match=f"unknown architecture '{typed}'; did you mean {meant}\\? The zoo has"):
        get_spec(typed)


def test_name_that_is_near_to_none_gets_the_list() -> None:
    with pytest.raises(InputError, match="'x'; The zoo has RepVGG-tiny, RepVGG-half, RepVGG-A0, "):
        get_spec("x")


def test_builtin_weights_are_named_after_their_architecture() -> None:
    assert builtin_weights().name == "repvgg-tiny.safetensors"
    assert builtin_weights().parent.name == "weights"
