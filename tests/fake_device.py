"""A second device for a machine that has none: what mixes it with the CPU fails, as it would on a GPU.

Tensors on it report the device `lazy`, whose gradients torch computes without a backend, and compute on the CPU. An
operator that gets tensors of both devices raises, but for CPU scalars, which a GPU takes too. So it finds tensors that
were made on the wrong device or never brought back. It says nothing about what a GPU rounds or how fast it is.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("lazy")


class _Elsewhere(torch.Tensor):
    """A tensor on the device; `held` has its values."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "_Elsewhere":
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype, device=DEVICE
        )
        made.held = held
        return made

    def __repr__(self) -> str:
        return f"on the other device: {self.held}"

    def tolist(self) -> Any:
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


class _Device(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """`torch.as_tensor` makes a plain tensor of a subclass, without values."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.as_tensor and isinstance(args[0], _Elsewhere):
            return args[0].to(**kwargs) if kwargs else args[0]
        return function(*args, **kwargs or {})


@contextmanager
def second_device() -> Iterator[torch.device]:
    """Give the device, for the time of the block."""
    with _Device(), _Functions():
        yield DEVICE


def _run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, _Elsewhere)]
    here = [tensor for tensor in tensors if not isinstance(tensor, _Elsewhere) and tensor.device.type == "cpu"]
    is_copy = function in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
    asked = kwargs.get("device")
    if there and not is_copy and any(tensor.ndim for tensor in here):
        raise RuntimeError(f"{function} got tensors on two devices, {DEVICE} and cpu")
    lands_there = (bool(there) if asked is None else torch.device(asked) == DEVICE) and function is not (
        torch.ops.aten._local_scalar_dense.default
    )
    if function is torch.ops.aten.copy_.default:
        lands_there = isinstance(args[0], _Elsewhere)
    if asked is not None and torch.device(asked) == DEVICE:
        kwargs = kwargs | {"device": torch.device("cpu")}
    inner_args, inner_kwargs = pytree.tree_map_only(_Elsewhere, lambda tensor: tensor.held, (args, kwargs))
    result = function(*inner_args, **inner_kwargs)
    if not lands_there:
        return result
    owners = {id(tensor.held): tensor for tensor in there}  # what an operator writes to is what it returns
    with torch.inference_mode(mode=False):  # else torch could not share what it makes of a parameter
        return pytree.tree_map_only(
            Tensor, lambda tensor: owners[id(tensor)] if id(tensor) in owners else _Elsewhere(tensor), result
        )
