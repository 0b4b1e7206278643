"""RepOpt-VGG: a plain VGG whose optimizer has the priors of RepVGG (Ding et al., "Re-parameterizing Your Optimizers
rather than Architectures", ICLR 2023).

A block bn(s3 * conv3x3(x) + s1 * conv1x1(x) + s0 * x) with constant s3 and s1 is trained by SGD exactly like the single
kernel

    W = s3 * W3 + pad(s1 * W1) + s0 * I

when the gradient of W is multiplied by s3^2, plus s1^2 at the center, plus 1 on the center's diagonal (s0 is trained).
So the network has one convolution a block from the beginning. The scales come from a hyper-search: the same network
with branches and trained scales, on a small data set.

1. Train `RepOpt-VGG-X-search`.
2. `target_from_search` makes `RepOpt-VGG-X` from its scales.
3. Train that with `repquant.train.gradient_scaling.apply_gradient_scaling(optimizer, gradient_multipliers(target))`.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from repquant.errors import InputError
from repquant.models.fuse import per_output
from repquant.models.network import RepVGG, build
from repquant.models.repopt_blocks import RepOptBlock, RepOptSearchBlock
from repquant.models.zoo import SEARCH_SUFFIX


def target_from_search(search: RepVGG, seed: int, num_classes: int | None = None) -> RepVGG:
    """Return a new target network in training mode with the scales that a hyper-search found; its weights are fresh.

    Args:
        search: a trained `RepOpt-VGG-*-search` in training form; it is not changed.
        seed: of the initial weights; the global random state stays as it is.
        num_classes: logits per image, by default those of the search, which may be on another data set.

    Raises:
        InputError: the network is not a hyper-search, or was fused.
    """
    if search.spec.block != "repopt-search" or search.form != "training":
        raise InputError(
            f"{search.spec.name} in {search.form} form has no scales to start from; give the weights of a trained "
            f"RepOpt-VGG-*{SEARCH_SUFFIX} in training form"
        )
    spec = replace(search.spec, name=search.spec.name.removesuffix(SEARCH_SUFFIX), block="repopt")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        target = build(spec, search.num_classes if num_classes is None else num_classes)
        targets = [block for block in target.modules() if isinstance(block, RepOptBlock)]
        searched = [block for block in search.modules() if isinstance(block, RepOptSearchBlock)]
        for block, source in zip(targets, searched, strict=True):
            block.scale3x3.weight.copy_(source.scale3x3.weight.detach())
            block.scale1x1.weight.copy_(source.scale1x1.weight.detach())
            identity = source.scale_identity
            block.draw_kernel(None if identity is None else identity.weight.detach().cpu())
    return target


@dataclass(frozen=True)
class GradientMultiplier:
    """What the constant scales of a block do to the gradient of its kernel.

    Attributes:
        s3: of the 3x3 branch, (O,).
        s1: of the 1x1 branch, (O,).
        has_identity: whether there is an identity branch, with a scale that is trained.
    """

    s3: Tensor
    s1: Tensor
    has_identity: bool

    def expand(self, in_channels: int, power: int) -> Tensor:
        """Return the factors (O, I, 3, 3) of a gradient (power 2) or of an Adam update (power 1).

        SGD: a scale multiplies the gradient of a branch's kernel, and again what its step does to W. Adam's update
        does not depend on the size of the gradient, so there it acts once, and without its sign.
        """
        factor = per_output(self.s3.abs() ** power).repeat(1, in_channels, 3, 3)
        factor[:, :, 1, 1] += (self.s1.abs() ** power)[:, None]
        if self.has_identity:
            factor[:, :, 1, 1].diagonal().add_(1)
        return factor


def gradient_multipliers(model: nn.Module) -> dict[nn.Parameter, GradientMultiplier]:
    """Return those of each kernel of a RepOpt-VGG target network in training form; no other network has any.

    They share the memory of the model's buffers: ask for them when the model is on its device.
    """
    multipliers = {}
    for block in model.modules():
        if isinstance(block, RepOptBlock):
            kernel = block.conv3x3.weight
            assert isinstance(kernel, nn.Parameter)
            multipliers[kernel] = GradientMultiplier(
                block.scale3x3.weight, block.scale1x1.weight, block.spec.has_identity
            )
    return multipliers
