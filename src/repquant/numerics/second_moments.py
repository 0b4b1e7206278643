"""Mean and second moments of rows that come in parts, in memory that does not grow with their number."""

import torch
from torch import Tensor

_ROWS = 1024  # rows that are added at once: a product of few rows spends its time on reading the moments
_BLOCK = 256  # columns of the moments that are computed at once; those above the diagonal are left out


class SecondMoments:
    """Of rows (R, G, K), for each of the G groups; float32.

    They are summed about the weighted mean of the first rows: what is lost to rounding is small even if it is large.
    """

    def __init__(self) -> None:
        self._weight = 0.0
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._origin = self._sum = self._products = torch.empty(0)

    def update(self, rows: Tensor, weight: Tensor) -> None:
        """Add rows, which count as `weight` (R,) says."""
        self._waiting.append((rows, weight))
        if sum(len(rows) for rows, _ in self._waiting) >= _ROWS:
            self._add_waiting()

    def mean(self) -> Tensor:
        """Return the mean (G, K)."""
        self._add_waiting()
        return self._origin + self._sum / self._weight

    def moments(self, *, central: bool) -> Tensor:
        """Return the second moments (G, K, K) about the mean, or about 0."""
        mean = self.mean()
        moments = self._products.tril().div_(self._weight)
        moments += moments.tril(-1).mT
        off = mean - self._origin
        moments -= off.unsqueeze(2) * off.unsqueeze(1)
        return moments if central else moments.add_(mean.unsqueeze(2) * mean.unsqueeze(1))

    def _add_waiting(self) -> None:
        if not self._waiting:
            return
        rows = torch.cat([part for part, _ in self._waiting]).transpose(0, 1)  # (G, R, K)
        weight = torch.cat([part for _, part in self._waiting]).to(rows.dtype).unsqueeze(1)
        is_first = self._origin.numel() == 0
        self._waiting.clear()
        if is_first:
            groups, _, columns = rows.shape
            self._origin = (rows * weight).sum(1) / weight.sum()
            self._sum = torch.zeros_like(self._origin)
            self._products = rows.new_zeros(groups, columns, columns)
        rows = rows - self._origin.unsqueeze(1)
        self._weight += float(weight.sum())
        self._sum += (rows * weight).sum(1)
        rows *= weight.sqrt()
        for products, part in zip(self._products, rows, strict=True):
            for start in range(0, part.shape[1], _BLOCK):
                stop = start + _BLOCK
                products[start:, start:stop].addmm_(part[:, start:].T, part[:, start:stop])
