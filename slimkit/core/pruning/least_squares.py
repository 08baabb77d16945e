"""Ridge regression of a layer's weights from rows that come in batches, in bounded memory.

Shapes as in `rows.py`: g groups, n rows, d weights of one output value, o outputs of a group.
"""

import torch
from torch import Tensor

MAX_UNKNOWNS = 6144  # up to so large a d, matrices of d * d are held; beyond it, up to MAX_ROWS rows
MAX_ROWS = 4096
CHUNK = 2048  # rows that are multiplied at once: a few large products are faster than many small ones


class Moments:
    """Sums over rows [g, n, d] and targets [g, n, o] that come in batches; there may be no targets (o = 0)."""

    def __init__(self, *, centred: bool = True) -> None:
        """centred: whether means are taken out."""
        self.count = 0
        self._is_centred = centred
        self._pending: list[tuple[Tensor, Tensor]] = []
        self._sums: tuple[Tensor, ...] = ()  # of rows, targets, products of rows, of rows and targets

    def add(self, rows: Tensor, targets: Tensor) -> None:
        """Add rows with their targets."""
        self._pending.append((rows, targets))
        self.count += rows.shape[1]
        if sum(part.shape[1] for part, _ in self._pending) >= CHUNK:
            self._sum_up()

    def centred(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Means of rows [g, 1, d] and targets [g, 1, o]; sums of products of rows [g, d, d] and with targets [g, d, o].

        All in float64, the products with the means taken out.
        """
        if self._pending:
            self._sum_up()
        rows, targets, products, crossed = (part.double() for part in self._sums)
        share = 1 / self.count if self._is_centred else 0.0
        products -= share * rows.mT @ rows
        crossed -= share * rows.mT @ targets
        return share * rows, share * targets, products, crossed

    def _sum_up(self) -> None:
        rows, targets = (torch.cat(parts, 1) for parts in zip(*self._pending, strict=True))
        self._pending.clear()
        sums = (rows.sum(1, keepdim=True), targets.sum(1, keepdim=True), rows.mT @ rows, rows.mT @ targets)
        self._sums = tuple(old.add_(new) for old, new in zip(self._sums, sums, strict=True)) if self._sums else sums


class Equations:
    """The equations rows [g, n, d] @ weights [g, d, o] + offset [g, 1, o] = targets [g, n, o]."""

    def __init__(self, unknowns: int, *, offset: bool) -> None:
        """unknowns: d. offset: whether there is one; without, it is zero."""
        self._offset = offset
        self._moments = Moments(centred=offset)
        self._is_wide = unknowns > MAX_UNKNOWNS
        self._rows: list[tuple[Tensor, Tensor]] = []  # of wide equations

    def add(self, rows: Tensor, targets: Tensor) -> None:
        """Add equations. Of those with many unknowns, what comes after MAX_ROWS is left out."""
        if not self._is_wide:
            self._moments.add(rows, targets)
        elif sum(part.shape[1] for part, _ in self._rows) < MAX_ROWS:
            self._rows.append((rows, targets))

    def solve(self, weights: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
        """The solution in the least squares, drawn towards the given weights: weights and offset, float64.

        Minimizes sum((rows @ w + offset - targets)**2) + ridge * sum(rows**2) / d * sum((w - weights)**2), per group,
        for rows whose mean is taken out where there is an offset.
        """
        solve = self._solve_by_rows if self._is_wide else self._solve_by_moments
        return solve(weights.double(), ridge)

    def _solve_by_moments(self, weights: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
        row_mean, target_mean, products, crossed = self._moments.centred()
        crossed -= products @ weights
        _dampen(products, ridge)
        weights = weights + torch.cholesky_solve(crossed, torch.linalg.cholesky(products))
        return weights, target_mean - row_mean @ weights

    def _solve_by_rows(self, weights: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
        """The same by the products of rows with each other [g, n, n], for fewer rows than unknowns."""
        rows, targets = (torch.cat(parts, 1)[:, :MAX_ROWS].double() for parts in zip(*self._rows, strict=True))
        share = float(self._offset)
        row_mean, target_mean = share * rows.mean(1, keepdim=True), share * targets.mean(1, keepdim=True)
        rows -= row_mean
        residual = targets - target_mean - rows @ weights
        products = rows @ rows.mT
        _dampen(products, ridge * rows.shape[1] / rows.shape[2])  # the same trace, over d instead of n
        weights = weights + rows.mT @ torch.cholesky_solve(residual, torch.linalg.cholesky(products))
        return weights, target_mean - row_mean @ weights


def _dampen(products: Tensor, ridge: float) -> None:
    """Add `ridge` of the mean of the diagonal to the diagonal of matrices [g, d, d], in place; never nothing."""
    diagonal = products.diagonal(dim1=1, dim2=2)
    diagonal += (ridge * diagonal.mean(1, keepdim=True)).clamp_min(1e-12)
