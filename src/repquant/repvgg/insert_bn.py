"""Insert batch normalization into a deploy model without changing what it computes.

The first step of the original quantization-aware training of RepVGG (`insert_bn.py` in the code of Ding et al., CVPR
2021): the statistics of each convolution's output are measured in front of its bias; the convolution loses the bias,
and a normalization with these statistics, gamma = sqrt(var + eps) and beta = bias + mean stands behind it.
"""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import reduce
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import safe_open
from torch import Tensor, nn

from repquant.atomic import replace_file
from repquant.choices import Averaging
from repquant.errors import InputError, shortened
from repquant.models.blocks import DeployBlock
from repquant.models.network import RepVGG
from repquant.models.safetensors_bytes import serialized
from repquant.numerics.moments import Moments
from repquant.regular_files import require_regular

FEW_IMAGES = 1000
"""With fewer, the statistics depend noticeably on which images they were."""

_FORM = "inserted-bn"


class NormalizedConv2d(nn.Module):
    """A convolution without bias, and the batch normalization that was inserted behind it."""

    def __init__(self, conv: nn.Conv2d, bn: nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv = conv
        self.bn = bn

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, I, H, W) to (N, O, H', W')."""
        y: Tensor = self.bn(self.conv(x))
        return y


@torch.no_grad()
def measure_outputs(
    model: nn.Module,
    batches: Iterable[Tensor],
    averaging: Averaging = "exact",
    momentum: float = 0.1,
    on_batch: Callable[[int], None] = lambda _: None,
) -> dict[str, Moments]:
    """Return the moments of each block's convolution output in front of its bias.

    Args:
        model: deploy model.
        batches: images (N, 3, H, W) each.
        averaging: "exact" over all values, or "ema", as the original code has it: moments of a batch weigh
            `momentum`, those before 1 - `momentum`.
        momentum: of "ema".
        on_batch: called with the number of images after each batch.

    Raises:
        InputError: no images, an unknown averaging, or a momentum out of its range.
    """
    if not 0 < momentum <= 1:
        raise InputError(f"momentum {momentum} was given; allowed is more than 0 and at most 1")
    if averaging not in get_args(Averaging):
        raise InputError(f"averaging {averaging!r} was given; allowed are {', '.join(get_args(Averaging))}")
    convolutions = deploy_convolutions(model)
    moments: dict[str, Moments] = {}

    def record(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(conv: nn.Module, _inputs: object, y: Tensor) -> None:
            assert isinstance(conv, nn.Conv2d)
            found = Moments.of(y if conv.bias is None else y - conv.bias.view(-1, 1, 1))
            before = moments.get(name)
            if before is None:
                moments[name] = found
            elif averaging == "exact":
                moments[name] = before.merge(found)
            else:
                moments[name] = _moving_average(before, found, momentum)

        return hook

    with ExitStack() as hooks:
        for name, conv in convolutions.items():
            hooks.callback(conv.register_forward_hook(record(name)).remove)
        for batch in batches:
            model(batch)
            on_batch(len(batch))
    if not moments:
        raise InputError("there are no images to measure statistics on; give a folder that holds some")
    return moments


def merge_outputs(parts: Sequence[Mapping[str, Moments]]) -> dict[str, Moments]:
    """Return the exact moments over all parts, of each of which `measure_outputs` gave them."""
    return {name: reduce(Moments.merge, (part[name] for part in parts)) for name in parts[0]}


@torch.no_grad()
def insert_bn(model: RepVGG, moments: Mapping[str, Moments]) -> RepVGG:
    """Return a copy of a deploy model with a batch normalization behind each block's convolution.

    Args:
        model: deploy model.
        moments: of each block's convolution output in front of its bias, see `measure_outputs`.

    Raises:
        InputError: moments of another architecture, or ones that are no numbers.
    """
    convolutions = deploy_convolutions(model)
    if moments.keys() != convolutions.keys() or any(
        len(moments[name].mean) != conv.out_channels for name, conv in convolutions.items()
    ):
        raise InputError(f"the statistics are not those of a {model.spec.name}: layers or channels differ")
    broken = [name for name, found in moments.items() if not _are_statistics(found)]
    if broken:
        raise InputError(
            f"the statistics of {broken[0]} are no numbers, or negative; check the images' mean and standard deviation"
        )
    memo: dict[int, Any] = {
        id(conv): _normalized(conv, moments[name].mean, moments[name].variance) for name, conv in convolutions.items()
    }
    return copy.deepcopy(model, memo).eval()


def without_statistics(model: RepVGG) -> RepVGG:
    """Return a copy of a deploy model with normalizations whose statistics are still to be loaded."""
    return insert_bn(
        model, {name: Moments.none(conv.out_channels) for name, conv in deploy_convolutions(model).items()}
    )


def save_inserted_bn(model: RepVGG, path: Path) -> None:
    """Write a model of `insert_bn` as safetensors; the file exists whole or not at all."""
    tensors = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    metadata = {"arch": model.spec.name, "num_classes": str(model.num_classes), "form": _FORM}
    with replace_file(path) as temporary:
        temporary.write_bytes(serialized(tensors, metadata))


def load_inserted_bn(model: RepVGG, path: Path) -> RepVGG:
    """Read a file of `save_inserted_bn`.

    Args:
        model: deploy model of the architecture and class count that the file has to have.
        path: the file.

    Raises:
        InputError: the file can't be read, is no model with inserted normalizations, or is of another checkpoint.
    """
    try:
        require_regular(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # not a dictionary
    except Exception as error:  # a damaged file can make the parser raise anything
        raise InputError(
            f"can't read {path}: {shortened(str(error))}; give a file that `repquant insert-bn` wrote"
        ) from error
    if metadata.get("form") != _FORM:
        raise InputError(f"{path} holds no inserted batch normalizations; make it with `repquant insert-bn`")
    found = metadata.get("arch"), metadata.get("num_classes")
    expected = model.spec.name, str(model.num_classes)
    if found != expected:
        raise InputError(
            f"the batch normalizations in {path} are of {found[0]} with {found[1]} classes, the model is "
            f"{expected[0]} with {expected[1]}; make them with `repquant insert-bn` from the same checkpoint"
        )
    inserted = without_statistics(model)
    try:
        inserted.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(f"{path} is damaged: {shortened(str(error))}; make it with `repquant insert-bn`") from error
    if wrong := [key for key, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise InputError(f"{path}: {shortened(wrong[0])} has values that are no numbers; make it anew")
    for name, conv in deploy_convolutions(model).items():
        layer = inserted.get_submodule(name)
        assert isinstance(layer, NormalizedConv2d)
        if not torch.equal(layer.conv.weight, conv.weight):
            raise InputError(
                f"the batch normalizations in {path} are of another {model.spec.name}: the weights of {name} are "
                "others; make them with `repquant insert-bn` from the same checkpoint"
            )
    return inserted


def deploy_convolutions(model: nn.Module) -> dict[str, nn.Conv2d]:
    """Return the convolution of each block of a deploy model, by its name."""
    return {f"{name}.conv": block.conv for name, block in model.named_modules() if isinstance(block, DeployBlock)}


def _are_statistics(moments: Moments) -> bool:
    finite = moments.mean.float().isfinite().all() and moments.variance.float().isfinite().all()
    return bool(finite) and bool((moments.variance >= 0).all())


def _normalized(conv: nn.Conv2d, mean: Tensor, variance: Tensor) -> NormalizedConv2d:
    bare = copy.deepcopy(conv)
    bare.bias = None
    weight = conv.weight
    bn = nn.BatchNorm2d(conv.out_channels).to(weight.device, weight.dtype)
    assert bn.running_mean is not None
    assert bn.running_var is not None
    bn.running_mean.copy_(mean)
    bn.running_var.copy_(variance)
    bn.weight.copy_(torch.sqrt(bn.running_var + bn.eps))
    bn.bias.copy_(bn.running_mean if conv.bias is None else conv.bias + bn.running_mean)
    return NormalizedConv2d(bare, bn)


def _moving_average(before: Moments, batch: Moments, momentum: float) -> Moments:
    mean = torch.lerp(before.mean, batch.mean, momentum)
    variance = torch.lerp(before.variance, batch.variance, momentum)
    return Moments(batch.count, mean, variance * batch.count)
