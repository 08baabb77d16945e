"""Ridge regression of a layer's weights from rows that come in batches, in bounded memory.

Shapes as in `rows.py`: g groups, n rows, d weights of one output value, o outputs of a group.
"""

import torch
from torch import Tensor

from slimkit.core.errors import ModelError

MAX_UNKNOWNS = 6144  # up to so large a d, matrices of d * d are held; beyond it, up to MAX_ROWS rows
MAX_ROWS = 4096
ATTEMPTS = 4  # at a factorization, each with ten times the damping
CHUNK = 2048  # rows that are multiplied at once: a few large products are faster than many small ones


class Moments:
    """Sums over rows [g, n, d] and targets [g, n, o] that come in batches; there may be no targets (o = 0)."""

    def __init__(self, *, centred: bool = True) -> None:
        """centred: whether means are taken out."""
        self.count = 0
        self._is_centred = centred
        self._pending: list[tuple[Tensor, Tensor]] = []
        self._centre: tuple[Tensor, ...] = ()  # of rows and targets: near enough to their means for float32 to hold
        # what is left of them
        self._of_rows: tuple[Tensor, ...] = ()  # sums: of rows, of products of rows
        self._of_targets: tuple[Tensor, ...] = ()  # sums: of targets, of products of rows and targets
        self.are_targets_new = False  # for rows that were added before

    def add(self, rows: Tensor, targets: Tensor) -> None:
        """Add rows with their targets."""
        self._pending.append((rows, targets))
        self.count += 0 if self.are_targets_new else rows.shape[1]
        if sum(part.shape[1] for part, _ in self._pending) >= CHUNK:
            self._sum_up()

    def renew_targets(self) -> None:
        """Forget the targets: what is added from now on are the very same rows in the same order, with others."""
        if self._pending:
            self._sum_up()
        self._of_targets, self.are_targets_new = (), True

    def centred(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Means of rows [g, 1, d] and targets [g, 1, o]; sums of products of rows [g, d, d] and with targets [g, d, o].

        All in float64, the products with the means taken out.
        """
        if self._pending:
            self._sum_up()
        rows, products = (part.double() for part in self._of_rows)
        targets, crossed = (part.double() for part in self._of_targets)
        if not self._is_centred:
            return torch.zeros_like(rows), torch.zeros_like(targets), products, crossed
        products -= rows.mT @ rows / self.count
        crossed -= rows.mT @ targets / self.count
        row_mean, target_mean = (c + s / self.count for c, s in zip(self._centre, (rows, targets), strict=True))
        return row_mean, target_mean, products, crossed

    def _sum_up(self) -> None:
        rows, targets = (torch.cat(parts, 1) for parts in zip(*self._pending, strict=True))
        self._pending.clear()
        if self._is_centred:
            self._centre = self._centre or (rows.mean(1, keepdim=True), targets.mean(1, keepdim=True))
            rows, targets = rows - self._centre[0], targets - self._centre[1]
        if not self.are_targets_new:
            self._of_rows = _added(self._of_rows, (rows.sum(1, keepdim=True), rows.mT @ rows))
        self._of_targets = _added(self._of_targets, (targets.sum(1, keepdim=True), rows.mT @ targets))


def _added(sums: tuple[Tensor, ...], more: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """In place, where there are sums."""
    return tuple(old.add_(new) for old, new in zip(sums, more, strict=True)) if sums else more


class Equations:
    """The equations rows [g, n, d] @ weights [g, d, o] + offset [g, 1, o] = targets [g, n, o]."""

    def __init__(self, unknowns: int, *, offset: bool) -> None:
        """unknowns: d. offset: whether there is one; without, it is zero."""
        self._offset = offset
        self._moments = Moments(centred=offset)
        self.is_wide = unknowns > MAX_UNKNOWNS
        self._rows: list[tuple[Tensor, Tensor]] = []  # of wide equations
        self._factor: Tensor | None = None  # of the products of the rows

    def add(self, rows: Tensor, targets: Tensor) -> None:
        """Add equations. Of those with many unknowns, what comes after MAX_ROWS is left out."""
        if not self.is_wide:
            self._moments.add(rows, targets)
        elif sum(part.shape[1] for part, _ in self._rows) < MAX_ROWS:
            self._rows.append((rows, targets))

    def renew_targets(self) -> None:
        """Forget the targets: what is added from now on are the very same rows in the same order, with others.

        Not for wide equations.
        """
        self._moments.renew_targets()

    def solve(self, weights: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
        """The solution in the least squares, drawn towards the given weights: weights and offset, float64.

        Minimizes sum((rows @ w + offset - targets)**2) + ridge * sum(rows**2) / d * sum((w - weights)**2), per group,
        for rows whose mean is taken out where there is an offset.
        """
        solve = self._solve_by_rows if self.is_wide else self._solve_by_moments
        return solve(weights.double(), ridge)

    def _solve_by_moments(self, weights: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
        row_mean, target_mean, products, crossed = self._moments.centred()
        crossed -= products @ weights
        if self._factor is None or not self._moments.are_targets_new:
            self._factor = damped_cholesky(products, ridge)
        weights = weights + torch.cholesky_solve(crossed, self._factor)
        return weights, target_mean - row_mean @ weights

    def _solve_by_rows(self, weights: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
        """The same by the products of rows with each other [g, n, n], for fewer rows than unknowns."""
        rows, targets = (torch.cat(parts, 1)[:, :MAX_ROWS].double() for parts in zip(*self._rows, strict=True))
        share = float(self._offset)
        row_mean, target_mean = share * rows.mean(1, keepdim=True), share * targets.mean(1, keepdim=True)
        rows -= row_mean
        residual = targets - target_mean - rows @ weights
        products = rows @ rows.mT
        factor = damped_cholesky(products, ridge * rows.shape[1] / rows.shape[2])  # the same trace, over d instead of n
        weights = weights + rows.mT @ torch.cholesky_solve(residual, factor)
        return weights, target_mean - row_mean @ weights


def damped_cholesky(products: Tensor, ridge: float) -> Tensor:
    """The lower factors of matrices [g, d, d], to whose diagonal `ridge` of its mean is added, in place; never nothing.

    More is added where rounding has left a matrix with a negative eigenvalue. Raises ModelError for numbers that are
    not finite.
    """
    diagonal = products.diagonal(dim1=1, dim2=2)
    mean = diagonal.mean(1, keepdim=True)
    for _ in range(ATTEMPTS):
        diagonal += (ridge * mean).clamp_min(1e-12)
        factor: Tensor
        factor, failed = torch.linalg.cholesky_ex(products)
        if not failed.any():
            return factor
        ridge *= 10
    raise ModelError(
        "The activations of the network are not finite on the training images.",
        "Check that it is trained, and gets images that are normalized as it wants them.",
    )
