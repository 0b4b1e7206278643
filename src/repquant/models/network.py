"""From a specification to a network, and what the network costs."""

import copy
from itertools import chain

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from repquant.errors import InputError
from repquant.models.blocks import DeployBlock, RepVGGBlock, TrainingBlock
from repquant.models.plus import AuxiliaryHeads
from repquant.models.qarep import QARepVGGBlock
from repquant.models.repopt_blocks import RepOptBlock, RepOptSearchBlock
from repquant.models.spec import ArchSpec, BlockKind, BlockSpec, Form
from repquant.models.zoo import get_spec

_TRAINING_BLOCKS: dict[BlockKind, type[RepVGGBlock | QARepVGGBlock | RepOptBlock | RepOptSearchBlock]] = {
    "repvgg": RepVGGBlock,
    "plus": RepVGGBlock,
    "qarepvgg": QARepVGGBlock,
    "repopt": RepOptBlock,
    "repopt-search": RepOptSearchBlock,
}


def make_block(spec: BlockSpec, form: Form) -> TrainingBlock | DeployBlock:
    """Return a freshly initialized block of the given form."""
    return _TRAINING_BLOCKS[spec.kind](spec) if form == "training" else DeployBlock(spec)


class RepVGG(nn.Module):
    """A RepVGG classifier for images of any size and aspect ratio.

    Args:
        spec: the architecture.
        num_classes: logits per image.
        form: "training" (branches) or "deploy" (one convolution a block).
    """

    def __init__(self, spec: ArchSpec, num_classes: int, form: Form = "training") -> None:
        super().__init__()
        self.spec = spec
        self.num_classes = num_classes
        self.stem = make_block(spec.stem, form)
        self.stages = nn.ModuleList(
            nn.Sequential(*(make_block(block, form) for block in stage)) for stage in spec.stages
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(spec.features, num_classes)
        has_auxiliary = spec.block == "plus" and form == "training"
        channels = [stage[-1].out_channels for stage in spec.stages[:3]] if has_auxiliary else []
        self.auxiliary = AuxiliaryHeads(channels, num_classes)

    @property
    def form(self) -> Form:
        """The form of the blocks."""
        return "deploy" if isinstance(self.stem, DeployBlock) else "training"

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, tuple[Tensor, ...]]:
        """Map normalized images (N, 3, H, W) to logits (N, num_classes).

        A network with auxiliary classifiers returns, in training mode, the logits and those of each of them.
        """
        x = self.stem(x)
        auxiliary = []
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if self.training and index < len(self.auxiliary):
                auxiliary.append(self.auxiliary[index](x))
        logits: Tensor = self.head(self.pool(x).flatten(1))
        return (logits, tuple(auxiliary)) if auxiliary else logits


def build(spec: ArchSpec | str, num_classes: int, form: Form = "training") -> RepVGG:
    """Return a network with initial weights from torch's global random generator.

    Args:
        spec: an architecture, or the name of one in the zoo.
        num_classes: logits per image.
        form: "training" or "deploy".

    Raises:
        InputError: the name is not in the zoo, or the class count is not positive.
    """
    if num_classes < 1:
        raise InputError(f"number of classes is {num_classes}; give a positive number")
    return RepVGG(get_spec(spec) if isinstance(spec, str) else spec, num_classes, form)


def count_parameters(module: nn.Module) -> int:
    """Return the number of learned scalars; running statistics are not counted."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_multiply_adds(module: nn.Module, image_size: int) -> int:
    """Return the multiply-adds of convolutions and linear layers for one square RGB image.

    The literature on these networks calls this number FLOPs. No memory is taken for weights or activations.
    """
    skeleton = _without_memory(module).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        skeleton(torch.empty(1, 3, image_size, image_size, device="meta"))
    flops: int = counter.get_total_flops()
    return flops // 2


def _without_memory(module: nn.Module) -> nn.Module:
    """Return a copy on the meta device; the memo keeps deepcopy from copying the weights first."""
    tensors = chain(module.parameters(), module.buffers())
    return copy.deepcopy(module, {id(tensor): tensor.to("meta") for tensor in tensors})
