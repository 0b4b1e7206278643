from pathlib import Path

import pytest
import torch
from torch import Tensor

from repquant.errors import InputError
from repquant.models.checkpoints import load_model, save_model
from repquant.models.dialects import to_dialect
from repquant.models.mismatch import closest_architecture, differences
from repquant.models.network import build
from repquant.models.zoo import ARCHITECTURES


def keys_of(arch: str, num_classes: int, form: str, dialect: str) -> dict[str, Tensor]:
    with torch.device("meta"):
        return to_dialect(build(arch, num_classes, form).state_dict(), dialect)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.pth"
    save_model(build("RepVGG-tiny", 10), path)
    return path


def refusal(path: Path, arch: str, num_classes: int) -> str:
    with pytest.raises(InputError) as caught:
        load_model(path, arch, num_classes)
    return str(caught.value)


def edited(path: Path, tmp_path: Path, **changes: Tensor | None) -> Path:
    tensors = {**torch.load(path), **{key.replace("__", "."): value for key, value in changes.items()}}
    torch.save({key: value for key, value in tensors.items() if value is not None}, tmp_path / "edited.pth")
    return tmp_path / "edited.pth"


def test_another_architecture_is_named(tiny: Path) -> None:
    assert refusal(tiny, "RepVGG-A0", 10).splitlines() == [
        f"weights {tiny} (official keys, training form) do not fit RepVGG-A0 with 10 classes:",
        "  stage0.rbr_dense.conv.weight is (16, 3, 3, 3) in the file, (48, 3, 3, 3) in the network",
        "  stage0.rbr_dense.bn.weight is (16,) in the file, (48,) in the network",
        "  stage0.rbr_dense.bn.bias is (16,) in the file, (48,) in the network",
        "  and 286 more",
        "the file looks like RepVGG-tiny with 10 classes; pass `arch='RepVGG-tiny'` `num_classes=10`",
    ]


def test_another_class_count_is_named(tiny: Path) -> None:
    assert refusal(tiny, "RepVGG-tiny", 1000).splitlines()[1:] == [
        "  linear.weight is (10, 256) in the file, (1000, 256) in the network",
        "  linear.bias is (10,) in the file, (1000,) in the network",
        "the file looks like RepVGG-tiny with 10 classes; pass `arch='RepVGG-tiny'` `num_classes=10`",
    ]


def test_missing_and_additional_keys_are_named(tiny: Path, tmp_path: Path) -> None:
    path = edited(tiny, tmp_path, stage1__0__rbr_1x1__conv__weight=None, post_se__down__weight=torch.ones(2, 3))
    lines = refusal(path, "RepVGG-tiny", 10).splitlines()
    assert lines[1:3] == [
        "  stage1.0.rbr_1x1.conv.weight is missing from the file; the network has (16, 16, 1, 1)",
        "  post_se.down.weight is in the file only: (2, 3)",
    ]
    assert "the closest architecture is RepVGG-tiny, which fits" in lines[3]
    assert "incomplete, has additions, or is of a network that the zoo does not have" in lines[3]


def test_integer_weights_are_not_taken_for_float_ones(tiny: Path, tmp_path: Path) -> None:
    path = edited(tiny, tmp_path, linear__weight=torch.ones(10, 256, dtype=torch.int8))
    assert "linear.weight is (10, 256) int8 in the file, (10, 256) in the network" in refusal(path, "RepVGG-tiny", 10)


def test_file_without_classifier_still_gets_the_closest_architecture(tiny: Path, tmp_path: Path) -> None:
    path = edited(tiny, tmp_path, linear__weight=None, linear__bias=None)
    assert "the closest architecture is RepVGG-tiny" in refusal(path, "RepVGG-A0", 10)


def test_keys_of_no_dialect_name_the_file(tmp_path: Path) -> None:
    torch.save({"layer1.0.conv1.weight": torch.ones(2)}, tmp_path / "resnet.pth")
    message = refusal(tmp_path / "resnet.pth", "RepVGG-A0", 10)
    assert str(tmp_path / "resnet.pth") in message
    assert "the first keys are layer1.0.conv1.weight" in message


def test_unknown_architecture_is_refused_before_the_file_is_read(tmp_path: Path) -> None:
    assert "did you mean RepVGG-A1" in refusal(tmp_path / "missing.pth", "repvgg-a1", 10)


@pytest.mark.parametrize(("form", "dialect"), [("training", "official"), ("deploy", "timm"), ("deploy", "mmpretrain")])
def test_every_architecture_is_closest_to_itself(form: str, dialect: str) -> None:
    for arch in ("RepVGG-A1", "RepVGG-B2g2", "RepVGG-D2se"):
        closest = closest_architecture(keys_of(arch, 17, form, dialect), dialect)
        assert (closest.arch, closest.num_classes) == (arch, 17)
        assert closest.fitting == closest.total


def test_no_two_architectures_fit_the_same_training_file() -> None:
    shapes = {
        tuple((key, tensor.shape) for key, tensor in keys_of(arch, 10, "training", "official").items())
        for arch in ARCHITECTURES
    }
    assert len(shapes) == len(ARCHITECTURES)


def test_the_deploy_form_does_not_show_how_a_network_was_trained() -> None:
    expected = keys_of("RepVGG-A1", 10, "deploy", "official")
    for arch in ("QARepVGG-A1", "RepOpt-VGG-A1", "RepOpt-VGG-A1-search"):
        found = keys_of(arch, 10, "deploy", "official")
        assert differences(found, expected) == []
        assert closest_architecture(found, "official").arch == "RepVGG-A1"


@pytest.mark.parametrize("arch", ["QARepVGG-half", "RepOpt-VGG-tiny", "RepOpt-VGG-A0-search"])
def test_training_keys_tell_the_kind_of_block(arch: str) -> None:
    closest = closest_architecture(keys_of(arch, 17, "training", "official"), "official")
    assert (closest.arch, closest.num_classes, closest.fitting) == (arch, 17, closest.total)


@pytest.mark.parametrize("form", ["training", "deploy"])
def test_repvggplus_is_closest_to_itself(form: str) -> None:
    closest = closest_architecture(keys_of("RepVGGplus-L2pse", 17, form, "official RepVGGplus"), "official RepVGGplus")
    assert (closest.arch, closest.num_classes, closest.fitting) == ("RepVGGplus-L2pse", 17, closest.total)


def test_only_counters_may_be_missing() -> None:
    counter, weight = "stem.bn.num_batches_tracked", torch.ones(2)
    assert differences({"a": weight}, {"a": weight, counter: torch.tensor(0)}) == []
    assert differences({"a": weight, counter: torch.tensor(0)}, {"a": weight}) == [counter]
    assert differences({"b": weight}, {"a": weight}) == ["a", "b"]
