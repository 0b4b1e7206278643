"""What to say when the tensors of a file do not fit the architecture that was asked for."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from repquant.errors import shortened
from repquant.models.dialects import detect_form, get_dialect, to_dialect
from repquant.models.network import build, make_block
from repquant.models.spec import ArchSpec, Form
from repquant.models.zoo import ARCHITECTURES

_SHOWN = 3


@dataclass(frozen=True)
class ClosestArchitecture:
    """The architecture of the zoo that fits a file best.

    Attributes:
        arch: its name.
        num_classes: rows of the classifier in the file, None if the file has none.
        fitting: keys with the same shape in the file and in the network.
        total: keys of either.
    """

    arch: str
    num_classes: int | None
    fitting: int
    total: int


def differences(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """Return the keys on which a file and a network disagree, in the network's order, then the file's.

    They disagree when one of them lacks the key, and on shape and kind of number. The counters
    `num_batches_tracked`, which inference does not read, may be missing from the file.
    """
    return [key for key in {**expected, **found} if not _agree(key, found.get(key), expected.get(key))]


def closest_architecture(found: Mapping[str, Tensor], dialect: str) -> ClosestArchitecture:
    """Return the architecture that shares the largest part of its keys and shapes with the file.

    Of architectures that are the same in deploy form, it is the RepVGG.
    """
    head = found.get(f"{get_dialect(dialect).head}.weight")
    num_classes = head.shape[0] if head is not None and head.ndim == 2 else None
    form = detect_form(found, dialect)
    specs = _same_stem(found, dialect, form) or list(ARCHITECTURES.values())
    likely = [spec for spec in specs if head is not None and head.shape[1:] == (spec.features,)]
    candidates = []
    for spec in [*likely, *(spec for spec in specs if spec not in likely)]:
        with torch.device("meta"):
            expected = to_dialect(build(spec, num_classes or 1, form).state_dict(), dialect)
        total = len(expected.keys() | found.keys())
        fitting = total - len(differences(found, expected))
        candidates.append(ClosestArchitecture(spec.name, num_classes, fitting, total))
        if fitting == total:
            break  # to build all takes seconds
    return max(candidates, key=lambda candidate: candidate.fitting / candidate.total)


def explain(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], dialect: str) -> str:
    """Say which keys differ, first ones first, and which architecture the file is closest to."""
    keys = differences(found, expected)
    lines = [f"  {shortened(key)} {_describe(found.get(key), expected.get(key))}" for key in keys[:_SHOWN]]
    if len(keys) > _SHOWN:
        lines.append(f"  and {len(keys) - _SHOWN} more")
    return "\n".join([*lines, _advice(closest_architecture(found, dialect))])


def _same_stem(found: Mapping[str, Tensor], dialect: str, form: Form) -> list[ArchSpec]:
    """Return the architectures whose first block has no key that the file lacks: to build all takes seconds."""
    same = []
    for spec in ARCHITECTURES.values():
        with torch.device("meta"):
            stem = make_block(spec.stem, form).state_dict(prefix="stem.")
        if all(key in found or key.endswith("num_batches_tracked") for key in to_dialect(stem, dialect)):
            same.append(spec)
    return same


def _agree(key: str, found: Tensor | None, expected: Tensor | None) -> bool:
    if found is None:
        return key.endswith("num_batches_tracked")
    if expected is None:
        return False
    return found.shape == expected.shape and found.is_floating_point() == expected.is_floating_point()


def _describe(found: Tensor | None, expected: Tensor | None) -> str:
    if found is None:
        return f"is missing from the file; the network has {_shape_and_kind(expected)}"
    if expected is None:
        return f"is in the file only: {_shape_and_kind(found)}"
    return f"is {_shape_and_kind(found)} in the file, {_shape_and_kind(expected)} in the network"


def _shape_and_kind(tensor: Tensor | None) -> str:
    assert tensor is not None
    kind = "" if tensor.is_floating_point() else f" {tensor.dtype}".replace("torch.", "")
    return f"{tuple(tensor.shape)}{kind}"


def _advice(closest: ClosestArchitecture) -> str:
    if closest.num_classes is not None and closest.fitting == closest.total:
        return (
            f"the file looks like {closest.arch} with {closest.num_classes} classes; "
            f"pass `arch='{closest.arch}'` `num_classes={closest.num_classes}`"
        )
    return (
        f"the closest architecture is {closest.arch}, which fits {closest.fitting} of {closest.total} keys: the "
        "file is incomplete, has additions, or is of a network that the zoo does not have"
    )
