"""Key maps between other projects' RepVGG checkpoints and the module names of `repquant.models.network`."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from repquant.errors import InputError
from repquant.models.spec import Form

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """How one project names the tensors of a RepVGG.

    Attributes:
        name: what the command line calls it.
        stem: prefix of the first block.
        stage: prefix of a stage, before its number.
        first_stage: number of the first stage after the stem.
        head: prefix of the classifier.
        parts: prefix inside a block, by native prefix.
    """

    name: str
    stem: str
    stage: str
    first_stage: int
    head: str
    parts: dict[str, str]


DIALECTS: dict[str, Dialect] = {
    dialect.name: dialect
    for dialect in (
        Dialect(  # https://github.com/DingXiaoH/RepVGG
            name="official",
            stem="stage0",
            stage="stage",
            first_stage=1,
            head="linear",
            parts={
                "conv3x3.conv": "rbr_dense.conv",
                "conv3x3.bn": "rbr_dense.bn",
                "conv1x1.conv": "rbr_1x1.conv",
                "conv1x1.bn": "rbr_1x1.bn",
                "identity": "rbr_identity",
                "conv": "rbr_reparam",
                "se.down": "se.down",
                "se.up": "se.up",
            },
        ),
        Dialect(  # https://github.com/huggingface/pytorch-image-models, models repvgg_*
            name="timm",
            stem="stem",
            stage="stages.",
            first_stage=0,
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
            stage="backbone.stage_",
            first_stage=1,
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

_NATIVE = Dialect(
    name="native",
    stem="stem",
    stage="stages.",
    first_stage=0,
    head="head",
    parts={part: part for part in DIALECTS["official"].parts},
)


def get_dialect(name: str) -> Dialect:
    """Return the dialect of that name.

    Raises:
        InputError: there is none.
    """
    if name not in DIALECTS:
        raise InputError(f"unknown checkpoint dialect {name!r}; choose one of {', '.join(DIALECTS)}")
    return DIALECTS[name]


def detect(keys: Iterable[str]) -> str:
    """Return the name of the dialect in which the keys name blocks of a RepVGG.

    Raises:
        InputError: no key names a part of a RepVGG block in any dialect; the message shows the first keys.
    """
    keys = tuple(keys)
    recognized = {dialect.name: sum(_is_block_key(key, dialect) for key in keys) for dialect in DIALECTS.values()}
    best = max(recognized, key=recognized.__getitem__)
    if not recognized[best]:
        first = ", ".join(keys[:3]) or "none"
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


def from_native(name: str, dialect: str) -> str:
    """Return a checkpoint's key for a name in the state dict of a `RepVGG`."""
    key = _translate(name, _NATIVE, get_dialect(dialect))
    assert key is not None, f"{name} is not a name of a RepVGG"
    return key


def to_dialect(state: Mapping[str, Value], dialect: str) -> dict[str, Value]:
    """Return the state dict of a `RepVGG` under a checkpoint's keys; the values are the same objects."""
    return {from_native(name, dialect): value for name, value in state.items()}


def _translate(key: str, source: Dialect, target: Dialect) -> str | None:
    prefix, _, leaf = key.rpartition(".")
    if prefix == source.head:
        return f"{target.head}.{leaf}"
    if (place := _split_block(prefix, source)) is None:
        return None
    stage, index, part = place
    native_part = next((native for native, theirs in source.parts.items() if theirs == part), None)
    if native_part is None:
        return None
    block = target.stem if stage is None else f"{target.stage}{stage + target.first_stage}.{index}"
    return f"{block}.{target.parts[native_part]}.{leaf}"


def _split_block(prefix: str, dialect: Dialect) -> tuple[int | None, int, str] | None:
    """Split the key of a block into stage (0..3, None for the stem), block index and part."""
    if prefix.startswith(f"{dialect.stem}."):
        return None, 0, prefix.removeprefix(f"{dialect.stem}.")
    match = re.fullmatch(rf"{re.escape(dialect.stage)}(\d+)\.(\d+)\.(.+)", prefix)
    if match is None:
        return None
    return int(match[1]) - dialect.first_stage, int(match[2]), match[3]


def _is_block_key(key: str, dialect: Dialect) -> bool:
    native = _translate(key, dialect, _NATIVE)
    return native is not None and not native.startswith(f"{_NATIVE.head}.")
