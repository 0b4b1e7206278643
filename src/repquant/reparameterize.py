"""A network with training-time branches in, its deploy graph out."""

from torch import fx, nn

from repquant.graph.capture import capture
from repquant.graph.exporting import Example
from repquant.graph.linear import merge


def reparameterize(model: nn.Module, example: Example) -> fx.GraphModule:
    """Return the deploy graph of any network: sums of linear branches become one convolution each.

    The graph is called as the model is and equals `model.eval()` up to rounding. The branches are found in what the
    model computes, not by its classes: convolutions, batch normalizations, average poolings, scale factors and the
    identity. The report, `result.meta["reparameterization"]`, lists what was merged and what was refused and why. The
    model is not changed and shares no tensor with the result.

    Args:
        model: any module that `torch.export` can follow, or what `capture` or this function returned.
        example: a tensor, such as (N, C, H, W), a tuple of the positional inputs, or a dict of the keyword inputs. The
            batch size stays free where the model allows it.

    Raises:
        InputError: the example doesn't fit the model, or the model can't be captured; the message names the line.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> class Block(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.wide, self.narrow = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)
        ...     def forward(self, x):
        ...         return torch.relu(self.wide(x) + self.narrow(x) + x)
        >>> deploy = reparameterize(Block(), torch.randn(1, 3, 8, 8))
        >>> deploy.meta["reparameterization"].groups
        (Group(name='reparam', paths=3, convolutions=2, kernel=(3, 3)),)
    """
    return merge(capture(model, example))
