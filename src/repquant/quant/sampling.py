"""What a layer reads and gives at sampled output positions, so that it is a matrix product there."""

import torch.nn.functional as F
from torch import Tensor, nn

from repquant.numerics.patches import Geometry, outputs_at, patches_at
from repquant.quant.convert import Layer


def maps(x: Tensor, layer: Layer) -> Tensor:
    """Return an input or output of `layer` as (N, C, places)."""
    return x.flatten(2) if isinstance(layer, nn.Conv2d) else x.reshape(len(x), -1, x.shape[-1]).transpose(1, 2)


def inputs_at(layer: Layer, x: Tensor, positions: Tensor) -> Tensor:
    """Return the inputs (N*P, groups, K) that the outputs at positions (N, P) are computed from."""
    if isinstance(layer, nn.Linear):
        return outputs_at(maps(x, layer), positions).unsqueeze(1)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    sizes = {"kernel": layer.kernel_size, "stride": layer.stride, "dilation": layer.dilation}
    geometry = Geometry(padding=(0, 0), **{name: (size[0], size[1]) for name, size in sizes.items()})
    rows = patches_at(padded, geometry, positions)
    return rows.reshape(len(rows), layer.groups, -1)
