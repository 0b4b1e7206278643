"""Key maps between other projects' RepVGG checkpoints and the module names of `repquant.models.network`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from repquant.errors import InputError, shortened
from repquant.models.spec import BlockKind, Form

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """How one project names the tensors of a RepVGG.

    Attributes:
        name: what the command line calls it.
        stem: prefix of the first block.
        stages: prefixes of the stages after it.
        head: prefix of the classifier.
        parts: prefix inside a block, by native prefix.
        auxiliary: prefixes of the auxiliary classifiers.
        auxiliary_parts: prefix inside one, by native prefix.
    """

    name: str
    stem: str
    stages: tuple[str, ...]
    head: str
    parts: dict[str, str]
    auxiliary: tuple[str, ...] = ()
    auxiliary_parts: dict[str, str] = field(default_factory=dict)


_REPVGG_PARTS = {
    "conv3x3.conv": "rbr_dense.conv",
    "conv3x3.bn": "rbr_dense.bn",
    "conv1x1.conv": "rbr_1x1.conv",
    "conv1x1.bn": "rbr_1x1.bn",
    "identity": "rbr_identity",
    "conv": "rbr_reparam",
    "se.down": "se.down",
    "se.up": "se.up",
}
_QAREPVGG_PARTS = {"pointwise": "rbr_1x1", "bn": "bn"}  # https://github.com/meituan/YOLOv6
_REPOPT_PARTS = {  # https://github.com/DingXiaoH/RepOptimizers
    "conv3x3": "conv",
    "conv1x1": "conv_1x1",
    "scale3x3": "scale_conv",
    "scale1x1": "scale_1x1",
    "scale_identity": "scale_identity",
}

DIALECTS: dict[str, Dialect] = {
    dialect.name: dialect
    for dialect in (
        Dialect(  # https://github.com/DingXiaoH/RepVGG
            name="official",
            stem="stage0",
            stages=("stage1", "stage2", "stage3", "stage4"),
            head="linear",
            parts=_REPVGG_PARTS | _QAREPVGG_PARTS | _REPOPT_PARTS,
        ),
        Dialect(  # https://github.com/huggingface/pytorch-image-models, models repvgg_*
            name="timm",
            stem="stem",
            stages=("stages.0", "stages.1", "stages.2", "stages.3"),
            head="head.fc",
            parts={
                "conv3x3.conv": "conv_kxk.conv",
                "conv3x3.bn": "conv_kxk.bn",
                "conv1x1.conv": "conv_1x1.conv",
                "conv1x1.bn": "conv_1x1.bn",
                "identity": "identity",
                "conv": "reparam_conv",
                "se.down": "attn.fc1",
                "se.up": "attn.fc2",
            },
        ),
        Dialect(  # https://github.com/open-mmlab/mmpretrain
            name="mmpretrain",
            stem="backbone.stem",
            stages=("backbone.stage_1", "backbone.stage_2", "backbone.stage_3", "backbone.stage_4"),
            head="head.fc",
            parts={
                "conv3x3.conv": "branch_3x3.conv",
                "conv3x3.bn": "branch_3x3.norm",
                "conv1x1.conv": "branch_1x1.conv",
                "conv1x1.bn": "branch_1x1.norm",
                "identity": "branch_norm",
                "conv": "branch_reparam",
                "se.down": "se_layer.conv1.conv",
                "se.up": "se_layer.conv2.conv",
            },
        ),
    )
}

_PLUS = Dialect(  # repvggplus.py of the official repository
    name="official RepVGGplus",
    stem="stage0",
    stages=("stage1.blocks", "stage2.blocks", "stage3_first.blocks", "stage3_second.blocks", "stage4.blocks"),
    head="linear",
    parts=_REPVGG_PARTS | {"post_se.down": "post_se.down", "post_se.up": "post_se.up"},
    auxiliary=("stage1_aux", "stage2_aux", "stage3_first_aux"),
    auxiliary_parts={"reduce.conv": "0.conv", "reduce.bn": "0.bn", "linear": "3"},
)
"""The official names for RepVGGplus; whoever asks for the official dialect gets them for such a network."""

_NATIVE = Dialect(
    name="native",
    stem="stem",
    stages=tuple(f"stages.{index}" for index in range(5)),
    head="head",
    parts={part: part for part in DIALECTS["official"].parts | _PLUS.parts},
    auxiliary=tuple(f"auxiliary.{index}" for index in range(3)),
    auxiliary_parts={part: part for part in _PLUS.auxiliary_parts},
)

_KNOWN = DIALECTS | {_PLUS.name: _PLUS}


def get_dialect(name: str) -> Dialect:
    """Return the dialect of that name.

    Raises:
        InputError: there is none.
    """
    if name not in _KNOWN:
        raise InputError(f"unknown checkpoint dialect {name!r}; choose one of {', '.join(DIALECTS)}")
    return _KNOWN[name]


def dialect_for(name: str, block: BlockKind) -> Dialect:
    """Return the dialect of that name for networks with this block: the official one has two key layouts.

    Raises:
        InputError: there is none.
    """
    return _PLUS if name == "official" and block == "plus" else get_dialect(name)


def detect(keys: Iterable[str]) -> str:
    """Return the name of the dialect in which the keys name blocks of a RepVGG.

    Raises:
        InputError: no key names a part of a RepVGG block in any dialect; the message shows the first keys.
    """
    keys = tuple(keys)
    recognized = {dialect.name: sum(_is_block_key(key, dialect) for key in keys) for dialect in _KNOWN.values()}
    best = max(recognized, key=recognized.__getitem__)
    if not recognized[best]:
        first = ", ".join(map(shortened, keys[:3])) or "none"
        raise InputError(
            f"these are not the keys of a RepVGG in any known dialect ({', '.join(DIALECTS)}); the first keys "
            f"are {first}. Give a checkpoint from one of these projects"
        )
    return best


def detect_form(keys: Iterable[str], dialect: str) -> Form:
    """Return the form of the network that has these keys in the dialect."""
    fused = f".{get_dialect(dialect).parts['conv']}."
    return "deploy" if any(fused in key for key in keys) else "training"


def to_native(key: str, dialect: str) -> str | None:
    """Return the module name of `repquant.models.network` for a checkpoint's key, None if it has none."""
    return _translate(key, get_dialect(dialect), _NATIVE)


def from_native(name: str, dialect: str) -> str | None:
    """Return a checkpoint's key for a name in the state dict of a `RepVGG`, None if the dialect has none."""
    return _translate(name, _NATIVE, get_dialect(dialect))


def to_dialect(state: Mapping[str, Value], dialect: str) -> dict[str, Value]:
    """Return the state dict of a `RepVGG` under a checkpoint's keys; the values are the same objects.

    A name for which the dialect has no key stays as it is.
    """
    return {from_native(name, dialect) or name: value for name, value in state.items()}


def _translate(key: str, source: Dialect, target: Dialect) -> str | None:
    prefix, _, leaf = key.rpartition(".")
    if prefix == source.head:
        return f"{target.head}.{leaf}"
    if prefix.startswith(f"{source.stem}."):
        part = _rename(prefix.removeprefix(f"{source.stem}."), source.parts, target.parts)
        return part and f"{target.stem}.{part}.{leaf}"
    for theirs, ours in zip(source.auxiliary, target.auxiliary, strict=False):
        if prefix.startswith(f"{theirs}."):
            part = _rename(prefix.removeprefix(f"{theirs}."), source.auxiliary_parts, target.auxiliary_parts)
            return part and f"{ours}.{part}.{leaf}"
    for theirs, ours in zip(source.stages, target.stages, strict=False):
        if prefix.startswith(f"{theirs}."):
            index, _, inner = prefix.removeprefix(f"{theirs}.").partition(".")
            part = _rename(inner, source.parts, target.parts) if index.isdecimal() else None
            return part and f"{ours}.{index}.{part}.{leaf}"
    return None


def _rename(part: str, source: Mapping[str, str], target: Mapping[str, str]) -> str | None:
    native = next((native for native, theirs in source.items() if theirs == part), None)
    return None if native is None else target.get(native)


def _is_block_key(key: str, dialect: Dialect) -> bool:
    native = _translate(key, dialect, _NATIVE)
    return native is not None and native.startswith((f"{_NATIVE.stem}.", "stages."))
