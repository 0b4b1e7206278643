import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from repquant.errors import InputError
from repquant.models.dialects import DIALECTS, detect, detect_form, dialect_for, from_native, to_dialect, to_native
from repquant.models.network import build
from repquant.models.spec import ArchSpec

EXAMPLES = [  # native, official, timm, mmpretrain
    (
        "stem.conv3x3.conv.weight",
        "stage0.rbr_dense.conv.weight",
        "stem.conv_kxk.conv.weight",
        "backbone.stem.branch_3x3.conv.weight",
    ),
    (
        "stages.0.1.conv1x1.bn.running_var",
        "stage1.1.rbr_1x1.bn.running_var",
        "stages.0.1.conv_1x1.bn.running_var",
        "backbone.stage_1.1.branch_1x1.norm.running_var",
    ),
    (
        "stages.2.13.identity.bias",
        "stage3.13.rbr_identity.bias",
        "stages.2.13.identity.bias",
        "backbone.stage_3.13.branch_norm.bias",
    ),
    (
        "stages.3.0.conv.bias",
        "stage4.0.rbr_reparam.bias",
        "stages.3.0.reparam_conv.bias",
        "backbone.stage_4.0.branch_reparam.bias",
    ),
    (
        "stem.se.down.weight",
        "stage0.se.down.weight",
        "stem.attn.fc1.weight",
        "backbone.stem.se_layer.conv1.conv.weight",
    ),
    (
        "stages.1.2.se.up.bias",
        "stage2.2.se.up.bias",
        "stages.1.2.attn.fc2.bias",
        "backbone.stage_2.2.se_layer.conv2.conv.bias",
    ),
    ("head.weight", "linear.weight", "head.fc.weight", "head.fc.weight"),
]


@pytest.mark.parametrize(("native", "official", "timm", "mmpretrain"), EXAMPLES)
def test_keys_by_hand(native: str, official: str, timm: str, mmpretrain: str) -> None:
    for dialect, key in (("official", official), ("timm", timm), ("mmpretrain", mmpretrain)):
        assert from_native(native, dialect) == key
        assert to_native(key, dialect) == native


@pytest.mark.parametrize(
    ("native", "official"),
    [
        ("stages.0.1.pointwise.weight", "stage1.1.rbr_1x1.weight"),
        ("stem.bn.running_mean", "stage0.bn.running_mean"),
        ("stages.2.3.conv3x3.weight", "stage3.3.conv.weight"),
        ("stages.2.3.conv1x1.weight", "stage3.3.conv_1x1.weight"),
        ("stem.scale3x3.weight", "stage0.scale_conv.weight"),
        ("stem.scale1x1.weight", "stage0.scale_1x1.weight"),
        ("stages.3.1.scale_identity.weight", "stage4.1.scale_identity.weight"),
    ],
)
def test_official_keys_of_qarepvgg_and_repopt_by_hand(native: str, official: str) -> None:
    assert from_native(native, "official") == official
    assert to_native(official, "official") == native
    if "bn" not in native:
        assert from_native(native, "timm") is None


@pytest.mark.parametrize(
    ("native", "official"),
    [
        ("stem.conv3x3.conv.weight", "stage0.rbr_dense.conv.weight"),
        ("stages.0.1.identity.weight", "stage1.blocks.1.rbr_identity.weight"),
        ("stages.2.11.post_se.down.weight", "stage3_first.blocks.11.post_se.down.weight"),
        ("stages.3.0.conv1x1.bn.bias", "stage3_second.blocks.0.rbr_1x1.bn.bias"),
        ("stages.4.0.conv.bias", "stage4.blocks.0.rbr_reparam.bias"),
        ("auxiliary.0.reduce.conv.weight", "stage1_aux.0.conv.weight"),
        ("auxiliary.1.reduce.bn.running_var", "stage2_aux.0.bn.running_var"),
        ("auxiliary.2.linear.bias", "stage3_first_aux.3.bias"),
        ("head.weight", "linear.weight"),
    ],
)
def test_keys_of_repvggplus_by_hand(native: str, official: str) -> None:
    assert from_native(native, "official RepVGGplus") == official
    assert to_native(official, "official RepVGGplus") == native


@pytest.mark.parametrize("form", ["training", "deploy"])
@pytest.mark.parametrize("block", ["plus", "qarepvgg", "repopt", "repopt-search"])
def test_every_key_of_the_other_blocks_survives_and_is_detected(block, form) -> None:
    spec = ArchSpec(name="x", blocks=(1, 2, 4, 1), widths=(0.25,) * 4, block=block)
    with torch.device("meta"):
        names = build(spec, 2, form).state_dict()
    dialect = dialect_for("official", block).name
    keys = to_dialect(names, dialect)
    assert [to_native(key, dialect) for key in keys] == list(names)
    assert len(keys) == len(names)
    assert detect(keys) == dialect
    assert detect_form(keys, dialect) == form


def test_name_without_a_key_stays_as_it_is() -> None:
    assert to_dialect({"stem.pointwise.weight": 1, "head.bias": 2}, "timm") == {
        "stem.pointwise.weight": 1,
        "head.fc.bias": 2,
    }


@settings(deadline=None)
@given(
    blocks=st.tuples(*[st.integers(1, 3)] * 4),
    form=st.sampled_from(["training", "deploy"]),
    squeeze_excite=st.booleans(),
    dialect=st.sampled_from(list(DIALECTS)),
)
def test_every_key_of_a_network_survives_and_is_detected(blocks, form, squeeze_excite, dialect) -> None:
    spec = ArchSpec(name="x", blocks=blocks, widths=(0.25, 0.25, 0.25, 0.25), squeeze_excite=squeeze_excite)
    with torch.device("meta"):
        names = build(spec, 2, form).state_dict()
    keys = to_dialect(names, dialect)
    assert len(keys) == len(names)
    assert [to_native(key, dialect) for key in keys] == list(names)
    assert detect(keys) == dialect
    assert detect_form(keys, dialect) == form


@pytest.mark.parametrize(
    "key",
    [
        "stage1.0.rbr_other.weight",
        "stage1.x.rbr_dense.conv.weight",
        "layer1.0.conv1.weight",
        "stage0.0.rbr_dense.conv.weight",
        "linear",
        "",
    ],
)
def test_key_without_a_module_has_no_native_name(key: str) -> None:
    assert to_native(key, "official") is None


@pytest.mark.parametrize(
    "keys", [["conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "fc.weight"], ["head.fc.weight"]]
)
def test_keys_of_another_network_are_of_no_dialect(keys: list[str]) -> None:
    with pytest.raises(InputError, match="official, timm, mmpretrain") as caught:
        detect(keys)
    assert keys[0] in str(caught.value)


def test_no_keys_are_of_no_dialect() -> None:
    with pytest.raises(InputError, match="the first keys are none"):
        detect([])


def test_unknown_dialect_is_refused() -> None:
    with pytest.raises(InputError, match="dialect 'keras'; choose one of official, timm, mmpretrain"):
        from_native("head.weight", "keras")
