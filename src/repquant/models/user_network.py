"""A network that the user's own code makes: `package.module:function` or `file.py:function`."""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from torch import nn

from repquant.errors import InputError, given
from repquant.models.checkpoints import load_tensors, without_prefixes

_FORM = "give package.module:function or file.py:function, where function() returns the network"


def make_network(model: str, weights: str) -> nn.Module:
    """Return the network that a function of the user's returns, with the weights of a checkpoint where one is given.

    The code runs as the user's own does: it is trusted.

    Args:
        model: `package.module:function` or `file.py:function`.
        weights: checkpoint with exactly the network's tensors; "" leaves them as the function made them.

    Raises:
        InputError: no such module, file or function, a function that fails or returns no network, or a checkpoint of
            another network.
    """
    where, _, name = model.rpartition(":")
    if not where or not name:
        raise InputError(f"{given('model', model)} was given; {_FORM}")
    function = getattr(_load(where, model), name, None)
    if not callable(function):
        raise InputError(f"{given('model', model)}: {where} has no function {name}; {_FORM}")
    try:
        network = function()
    except Exception as error:
        raise InputError(f"{given('model', model)}: {name}() failed with {type(error).__name__}: {error}") from error
    if not isinstance(network, nn.Module):
        raise InputError(f"{given('model', model)}: {name}() returned a {type(network).__name__}; {_FORM}")
    if weights:
        _fill(network, Path(weights))
    return network.eval()


def _load(where: str, model: str) -> ModuleType:
    try:
        if not where.endswith(".py"):
            sys.path.insert(0, "")
            try:
                return importlib.import_module(where)
            finally:
                sys.path.remove("")
        path = Path(where)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None or not path.is_file():
            raise InputError(f"{given('model', model)}: there is no file {where}; {_FORM}")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{given('model', model)}: {where} can't be imported: {type(error).__name__}: {error}"
        ) from error


def _fill(network: nn.Module, path: Path) -> None:
    tensors = load_tensors(path)
    if not tensors.keys() & network.state_dict().keys():  # the network may have been a member of another one
        tensors = without_prefixes(tensors, ("model.",))
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        reason = "; ".join(line.strip() for line in str(error).splitlines()[1:3])
        raise InputError(f"checkpoint {path} is of another network: {reason[:500]}") from error
