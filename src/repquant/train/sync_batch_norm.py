"""Batch normalization with the statistics of the parts that all processes have of a batch.

torch's own `SyncBatchNorm` refuses tensors on the CPU; the class here is for them.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from repquant.train.distributed import Ranks


def synchronize_batch_norm(model: nn.Module, device: torch.device, ranks: Ranks) -> None:
    """Let all batch normalizations of a model, in place, see the whole batch; one process needs nothing.

    Parameters and buffers are the same objects afterwards, and the state dict has the same keys.
    """
    if ranks.world_size == 1:
        return
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.BatchNorm2d:
                setattr(module, name, SyncBatchNorm2d.of(child))


class SyncBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` over the batches of all processes of the default group, on the CPU."""

    @classmethod
    def of(cls, bn: nn.BatchNorm2d) -> "SyncBatchNorm2d":
        """Return a module that shares the parameters and buffers of `bn`."""
        synchronized = cls(bn.num_features, bn.eps, bn.momentum, bn.affine, bn.track_running_stats, device="meta")
        synchronized.weight, synchronized.bias = bn.weight, bn.bias
        synchronized.running_mean, synchronized.running_var = bn.running_mean, bn.running_var
        synchronized.num_batches_tracked = bn.num_batches_tracked
        return synchronized.train(bn.training)

    def forward(self, input: Tensor) -> Tensor:
        """Normalize (N, C, H, W), N may differ between processes; in eval mode as `nn.BatchNorm2d`."""
        if not self.training:
            return super().forward(input)
        x = input.float()
        count, mean, variance = _statistics(x)
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(variance * (count / (count - 1)), share)
        normalized: Tensor = _Normalize.apply(x, self.weight, self.bias, mean, variance, self.eps, count)
        return normalized.to(input.dtype)


@torch.no_grad()
def _statistics(x: Tensor) -> tuple[float, Tensor, Tensor]:
    """Values a channel, their mean (C,) and their mean squared deviation (C,), over all processes.

    The parts are combined by means and deviations (Chan, Golub and LeVeque, 1979), not by sums of squares, which would
    cancel.
    """
    variance, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
    own = torch.cat([mean, variance, mean.new_tensor([x.numel() / x.shape[1]])])
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, own)
    stacked = torch.stack(parts).double()
    channels = x.shape[1]
    means, variances, counts = stacked[:, :channels], stacked[:, channels:-1], stacked[:, -1:]
    count = counts.sum()
    mean = (counts * means).sum(dim=0) / count
    variance = (counts * (variances + (means - mean).square())).sum(dim=0) / count
    return float(count), mean.float(), variance.float()


class _Normalize(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias, where mean and variance follow from the x of all processes.

    With u = (x - mean) / sqrt(variance + eps) and n values a channel in all processes, the gradient is

        dx = weight / sqrt(variance + eps) * (dy - sum(dy) / n - u * sum(dy * u) / n)

    with the sums over all processes; those of weight and bias are this process's own.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        variance: Tensor,
        eps: float,
        count: float,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.eps, ctx.count = eps, count
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance = ctx.saved_tensors
        # In inference mode torch's own kernel gives weight / sqrt(variance + eps) * dy, sum(dy * u) and sum(dy).
        dx, dweight, dbias = torch.ops.aten.native_batch_norm_backward(
            dy.contiguous(), x, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
        )
        sums = torch.stack([dweight, dbias])
        dist.all_reduce(sums)
        inverse = (variance + ctx.eps).rsqrt()
        scale = inverse if weight is None else inverse * weight
        slope = scale * inverse * sums[0] / ctx.count
        shift = mean * slope - scale * sums[1] / ctx.count
        dx.add_(shift.view(-1, 1, 1)).addcmul_(x, slope.view(-1, 1, 1), value=-1)
        own = (dweight, dbias) if weight is not None else (None, None)
        return dx, *own, None, None, None, None
