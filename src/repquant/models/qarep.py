"""The QARepVGG block, whose equivalent kernel suits quantization (Chu et al., "Make RepVGG Greater Again", AAAI 2024).

Its variant S4: the identity and 1x1 branches have no batch normalization of their own, and one stands behind the sum,

    y = relu(se(bn(bn3(conv3x3(x)) + conv1x1(x) + x)))

With t3, shift3 of bn3 and t, shift of bn (`fuse.scale_shift`),

    K = t3 * W3 + pad(W1) + I,    W_eq = t * K,    b_eq = t * shift3 + shift

The authors' code trains bn(se(sum)) and deploys se(conv), which are not equal; here SE stands behind the batch
normalization in both forms.
"""

from torch import Tensor, nn

from repquant.models.blocks import ConvBN, TrainingBlock, post_squeeze_excite, squeeze_excite
from repquant.models.fuse import equivalent_kernel, identity_kernel, inference_scale_shift, pad_pointwise, per_output
from repquant.models.spec import BlockSpec


class QARepVGGBlock(TrainingBlock):
    """Training form: branches bn(bn3(conv3x3(x)) + pointwise(x) + x), the last where `spec.has_identity`."""

    def __init__(self, spec: BlockSpec) -> None:
        super().__init__()
        self.spec = spec
        self.conv3x3 = ConvBN(spec, 3)
        self.pointwise = nn.Conv2d(
            spec.in_channels, spec.out_channels, 1, stride=spec.stride, groups=spec.groups, bias=False
        )
        self.bn = nn.BatchNorm2d(spec.out_channels)
        self.se = squeeze_excite(spec)
        self.relu = nn.ReLU()
        self.post_se = post_squeeze_excite(spec)

    def branches(self, x: Tensor) -> Tensor:
        """Normalize the sum of the branches."""
        total = self.conv3x3(x) + self.pointwise(x)
        normalized: Tensor = self.bn(total + x if self.spec.has_identity else total)
        return normalized


@equivalent_kernel.register
def _(block: QARepVGGBlock) -> tuple[Tensor, Tensor]:
    w3 = block.conv3x3.conv.weight
    t3, shift3 = inference_scale_shift(block.conv3x3.bn)
    kernel = per_output(t3) * w3 + pad_pointwise(block.pointwise.weight)
    if block.spec.has_identity:
        kernel = kernel + identity_kernel(block.spec.in_channels, block.spec.groups, w3.dtype, w3.device)
    t, shift = inference_scale_shift(block.bn)
    return per_output(t) * kernel, t * shift3 + shift
