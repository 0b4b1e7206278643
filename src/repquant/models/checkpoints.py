"""Read and write checkpoints. Only tensors are ever unpickled: a file can't make this process run anything."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from repquant.atomic import replace_file
from repquant.errors import InputError, shortened
from repquant.models.dialects import detect, detect_form, dialect_for, from_native, to_dialect
from repquant.models.mismatch import closest_architecture, differences, explain
from repquant.models.network import RepVGG, build
from repquant.models.safetensors_bytes import serialized
from repquant.models.torch_file import PLAIN_TYPES, load_torch_file
from repquant.models.torch_pickle import CodeError
from repquant.models.zoo import get_spec
from repquant.regular_files import require_regular

_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Averaged weights first, where a file has both: they are what its training was evaluated with."""
_PREFIXES = ("module.", "_orig_mod.")
"""What distributed training and `torch.compile` put in front of all names."""
_MEMBER = "model."


def load_tensors(path: Path | str) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by key, on the CPU; those of any float type as float32.

    A `.safetensors` file or one of `torch.save`, bare or wrapped in `state_dict_ema`, `model_ema`, `state_dict` or
    `model`; the prefixes `module.` of distributed training and `_orig_mod.` of `torch.compile` are removed.

    Raises:
        InputError: the file is missing, damaged or truncated, needs code to load (none of it runs), is not a
            mapping from names to tensors, is empty, or has NaN or infinite values.
    """
    path = Path(path)
    tensors = without_prefixes(_plain_tensors(_unwrap(_read(path)), path), _PREFIXES)
    _require_finite(tensors, path)
    return tensors


def without_prefixes(tensors: dict[str, Tensor], prefixes: Sequence[str]) -> dict[str, Tensor]:
    """Return the tensors without what all of their names begin with, as often and in whatever order it is there."""
    while prefix := next((prefix for prefix in prefixes if all(key.startswith(prefix) for key in tensors)), ""):
        tensors = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    return tensors


def load_model(path: Path | str, arch: str, num_classes: int) -> RepVGG:
    """Return the network of a checkpoint in evaluation mode, in the form that the file has.

    The network may have been the member `model` of another one.

    Args:
        path: a checkpoint as `load_tensors` reads it, in any dialect of `repquant.models.dialects`.
        arch: a name of the zoo.
        num_classes: rows of the file's classifier.

    Raises:
        InputError: as `load_tensors`; or the name is unknown, the keys are of no known dialect, or they do not fit
            the architecture and class count, and then the message names the first that differ and the closest
            architecture.
    """
    spec = get_spec(arch)
    tensors = without_prefixes(load_tensors(path), (*_PREFIXES, _MEMBER))
    try:
        dialect = detect(tensors)
    except InputError as error:
        raise InputError(f"weights {path}: {error}") from error
    form = detect_form(tensors, dialect)
    with torch.device("meta"):
        model = build(spec, num_classes, form)
    expected = to_dialect(model.state_dict(), dialect)
    if differences(tensors, expected):
        raise InputError(
            f"weights {path} ({dialect} keys, {form} form) do not fit {arch} with {num_classes} classes:\n"
            + explain(tensors, expected, dialect)
        )
    counter = torch.zeros((), dtype=torch.int64)
    state = {name: tensors.get(from_native(name, dialect) or name, counter) for name in model.state_dict()}
    model.load_state_dict(state, assign=True)
    return model.eval()


def identify(path: Path | str) -> tuple[str, int]:
    """Return the architecture of the zoo, and the number of classes, that a checkpoint is of.

    Of architectures that are the same in deploy form, it is the RepVGG.

    Raises:
        InputError: as `load_tensors`; or the file is of no architecture of the zoo.
    """
    tensors = without_prefixes(load_tensors(path), (*_PREFIXES, _MEMBER))
    try:
        found = closest_architecture(tensors, detect(tensors))
    except InputError as error:
        raise InputError(f"weights {path}: {error}") from error
    if found.fitting < found.total or found.num_classes is None:
        raise InputError(
            f"weights {path} are of no architecture of the zoo: the closest is {found.arch}, which fits "
            f"{found.fitting} of {found.total} keys. Give `arch` and `num_classes` to see which keys differ, or "
            "`model` for a network of your own"
        )
    return found.arch, found.num_classes


def save_model(model: RepVGG, path: Path | str, dialect: str = "official") -> None:
    """Write the network's state dict under a dialect's keys; the file exists whole or not at all.

    The suffix decides the format: `.pth` is the bare dictionary of `torch.save`, `.safetensors` has the dialect,
    architecture, class count and form as metadata.

    Raises:
        InputError: another suffix, a dialect that is unknown or has no names for such a network, or a folder that is
            missing or can't be written.
    """
    path = Path(path)
    names = dialect_for(dialect, model.spec.block).name
    for name in model.state_dict():
        if from_native(name, names) is None:
            raise InputError(
                f"the {dialect} dialect has no key for {name}: it does not know {model.spec.name} in {model.form} "
                "form; use the official dialect, or the deploy form"
            )
    metadata = {
        "dialect": dialect,
        "arch": model.spec.name,
        "num_classes": str(model.num_classes),
        "form": model.form,
    }
    _write(to_dialect(model.state_dict(), names), metadata, path)


def save_state(network: nn.Module, path: Path | str) -> None:
    """Write any network's state dict under its own keys, as .safetensors or .pth, whole or not at all.

    Raises:
        InputError: another suffix, or a folder that is missing or can't be written.
    """
    _write(network.state_dict(), {}, Path(path))


def _write(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path) -> None:
    """Metadata is for .safetensors alone."""
    tensors = {
        key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for key, tensor in tensors.items()
    }
    if path.suffix == ".safetensors":
        content = serialized(tensors, metadata)
    elif path.suffix == ".pth":
        buffer = io.BytesIO()
        torch.save(tensors, buffer)
        content = buffer.getvalue()
    else:
        raise InputError(f"can't tell the format of {path} from its suffix; use .safetensors or .pth")
    with replace_file(path) as temporary:
        temporary.write_bytes(content)


def _read(path: Path) -> Any:
    if path.is_dir():
        raise InputError(f"weights {path} is a folder; give a checkpoint file")
    if not path.exists():
        raise InputError(f"weights {path} does not exist")
    try:
        if path.suffix == ".safetensors":
            require_regular(path)
            return safetensors.torch.load_file(path)
        return load_torch_file(path)
    except OSError as error:
        raise InputError(f"can't read weights {path}: {error.strerror or error}") from error
    except CodeError as error:
        raise InputError(
            f"weights {path} need code to load ({shortened(error.name)}) and are refused: nothing in the file was run. "
            "Only tensors are read; whoever made the file can save them alone with torch.save(model.state_dict(), path)"
        ) from error
    except Exception as error:  # a damaged file can make the parsers raise anything
        kind = "safetensors" if path.suffix == ".safetensors" else "torch.save"
        reason = "" if kind == "safetensors" else f" ({shortened(str(error))})"
        raise InputError(
            f"weights {path} are truncated, damaged or no {kind} file{reason}: nothing in the file was run. "
            "Get them again"
        ) from error


def _unwrap(content: Any) -> Any:
    while isinstance(content, Mapping):
        wrapper = next((name for name in _WRAPPERS if isinstance(content.get(name), Mapping)), None)
        if wrapper is None:
            break
        content = content[wrapper]
    return content


def _plain_tensors(content: Any, path: Path) -> dict[str, Tensor]:
    expected = f"expected a dictionary of tensors, bare or under {', '.join(map(repr, _WRAPPERS))}"
    if not isinstance(content, Mapping):
        raise InputError(f"weights {path} hold a {type(content).__name__}; {expected}")
    tensors = {}
    for key, value in content.items():
        if not isinstance(key, str) or not _is_plain(value):
            raise InputError(f"weights {path}: entry {shortened(repr(key))} is no plain tensor; {expected}")
        value = value.detach()
        if not value.is_floating_point():
            tensors[key] = value
        elif not key.endswith("num_batches_tracked"):  # halved by accident, a counter may be infinite: leave it out
            tensors[key] = value.float()
    if not tensors:
        raise InputError(f"weights {path} hold no tensors; {expected}")
    return tensors


def _is_plain(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype in PLAIN_TYPES


def _require_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    damaged = {key: tensor for key, tensor in tensors.items() if not tensor.isfinite().all()}
    if damaged:
        key, tensor = next(iter(damaged.items()))
        count = int((~tensor.isfinite()).sum())
        others = f", and {len(damaged) - 1} more tensors have some" if len(damaged) > 1 else ""
        raise InputError(
            f"weights {path}: {shortened(key)} has {count} NaN or infinite values of {tensor.numel()}{others}; "
            "the training that made the file has diverged or the file is damaged"
        )
